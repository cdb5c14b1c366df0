"""Textual inversions: every spelling becomes the same words, and half of one is refused."""

import json

import pytest
import torch

from costars.concepts.load import load_concept
from costars.errors import ConceptError


def load(path):
    return load_concept(path, path.stem, path.name)


@pytest.mark.parametrize(
    ("tensors", "word", "shapes", "family"),
    [
        ({"emb_params": (2, 768)}, "mine", {"text_encoder": (2, 768)}, "sd15"),
        ({"emb_params": (2, 1024)}, "mine", {"text_encoder": (2, 1024)}, "sd2"),
        ({"<zxa>": (768,)}, "<zxa>", {"text_encoder": (1, 768)}, "sd15"),
        ({"<zxa>": (3, 768)}, "<zxa>", {"text_encoder": (3, 768)}, "sd15"),
        ({"zxa": (3, 768)}, "zxa", {"text_encoder": (3, 768)}, "sd15"),
        ({"<v.1>": (1, 32)}, "<v.1>", {"text_encoder": (1, 32)}, ""),
        (
            {"clip_l": (4, 768), "clip_g": (4, 1280)},
            "mine",
            {"text_encoder": (4, 768), "text_encoder_2": (4, 1280)},
            "sdxl",
        ),
    ],
)
def test_every_spelling_is_words_with_a_tensor_for_each_text_encoder(write, random, tensors, word, shapes, family):
    held = {key: random(*shape).half() for key, shape in tensors.items()}
    concept = load(write(held))
    assert (concept.trigger, concept.family, concept.format, concept.adapter) == (word, family, "textual inversion", {})
    assert not concept.per_layer and set(concept.tokens) == {word}
    for (part, tensor), source in zip(concept.tokens[word].items(), held.values(), strict=True):
        assert tensor.dtype is torch.float32 and tensor.shape == shapes[part]
        assert torch.equal(tensor, source.float().view(shapes[part]))


def test_diffusers_reads_the_same_words(write, random, pipeline):
    path = write({"<zxa>": random(2, 32)})
    pipeline.load_textual_inversion(path, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<zxa>", "<zxa>_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(load(path).tokens["<zxa>"]["text_encoder"], table[ids])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"clip_l": (4, 768)}, "holds clip_l, want emb_params alone or clip_l with clip_g"),
        ({"clip_g": (4, 1280)}, "holds clip_g, want emb_params alone"),
        ({"clip_g": (4, 1280), "<zxa>": (4, 768)}, "holds <zxa>, clip_g, want"),
        ({"<zxa>": (4, 1280)}, "its word '<zxa>' is of SDXL's second text encoder alone; put both of its files"),
        ({"clip_l": (4, 768), "clip_g": (3, 1280)}, "'mine' is text_encoder (4, 768), text_encoder_2 (3, 1280), want"),
        ({"emb_params": (0, 768)}, "'mine' is text_encoder (0, 768), want 1 to 75 vectors"),
        ({"emb_params": (76, 768)}, "'mine' is text_encoder (76, 768), want 1 to 75 vectors"),
        ({"<my cat>": (1, 768)}, "its word would be '<my cat>'; name the file in one word"),
        ({"<\x1b[31m>": (1, 768)}, "its word would be '<\\x1b[31m>'"),
        ({"weight": (4, 16)}, "holds 'weight', which is no layer of an adapter"),
        ({"emb_params": (1, 2, 768)}, "holds 'emb_params', which is no layer of an adapter"),
    ],
)  # fmt: skip
def test_half_of_one_or_a_word_that_cannot_be_written_is_refused(write, tensors, said):
    with pytest.raises(ConceptError) as caught:
        load(write({key: torch.ones(shape) for key, shape in tensors.items()}))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_are_refused(write):
    with pytest.raises(ConceptError, match="its word 'mine' holds numbers that are not finite; fetch the file again"):
        load(write({"emb_params": torch.full((1, 768), float("nan"))}))


def test_the_name_of_a_file_with_a_space_is_no_word(write):
    with pytest.raises(ConceptError, match="its word would be 'my cat'; name the file in one word"):
        load(write({"emb_params": torch.ones(1, 768)}, "my cat"))


def test_words_of_our_own_files_come_in_the_order_of_the_trigger(write, random):
    words = {
        f"tokens.{part}.{w}": random(2, 8) for w in ("<a>", "<b.c>") for part in ("text_encoder", "text_encoder_2")
    }
    concept = load(write(words, costars=json.dumps({"trigger": "<b.c> <a>"})))
    assert list(concept.tokens) == ["<b.c>", "<a>"] and concept.trigger == "<b.c> <a>"
    assert {part for parts in concept.tokens.values() for part in parts} == {"text_encoder", "text_encoder_2"}


def test_words_and_layers_may_be_in_one_file_of_ours(write, random):
    layer = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{layer}.lora_A.weight": random(2, 6), f"{layer}.lora_B.weight": random(5, 2)}
    concept = load(write(tensors | {"tokens.text_encoder.<a>": random(16, 768)}, costars='{"per_layer": true}'))
    assert (set(concept.adapter), set(concept.tokens), concept.per_layer) == ({layer}, {"<a>"}, True)


@pytest.mark.parametrize("key", ["tokens.text_encoder_2.<a>", "tokens.vae.<a>", "tokens.text_encoder."])
def test_words_of_our_own_files_are_checked_too(write, random, key):
    with pytest.raises(ConceptError, match=r"mine.safetensors: its word"):
        load(write({key: random(2, 8)}))


def test_nothing_else_is_read_beside_our_words(write, random):
    with pytest.raises(ConceptError, match="holds 'emb_params', which is no layer"):
        load(write({"tokens.text_encoder.<a>": random(2, 8), "emb_params": random(2, 768)}))


def test_two_files_of_words_that_are_no_halves_stay_two_concepts(write, random, tmp_path):
    one = write({"<zxa>": random(2, 768)}, "zxa")
    for other in ({"<zxa>": random(2, 768)}, {"<zxb>": random(2, 1280)}, {"emb_params": random(2, 768)}):
        write(other, "zxa_2")
        assert load(one).tokens.keys() == {"<zxa>"} and load(one).family == "sd15"
