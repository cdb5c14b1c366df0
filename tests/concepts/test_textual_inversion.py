"""Textual inversions of every program become the same embeddings; incomplete ones are rejected."""

import json

import pytest
import torch

from costars.concepts.load import load_concept
from costars.errors import ConceptError


def load(path):
    return load_concept(path, path.stem, path.name)


@pytest.mark.parametrize(
    ("tensors", "token", "shapes", "family"),
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
        (
            {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)},
            "mine",
            {"text_encoder": (2, 768), "text_encoder_2": (2, 1280)},
            "sdxl",
        ),
        ({"text_encoders_0": (2, 768)}, "mine", {"text_encoder": (2, 768)}, "sd15"),
        ({"string_to_param.*": (2, 768)}, "mine", {"text_encoder": (2, 768)}, "sd15"),
    ],
)
def test_embeddings_for_each_text_encoder(write, random, tensors, token, shapes, family):
    stored = {key: random(*shape).half() for key, shape in tensors.items()}
    concept = load(write(stored))
    assert (concept.trigger, concept.family, concept.format, concept.adapter) == (
        token,
        family,
        "textual inversion",
        {},
    )
    assert not concept.per_layer and set(concept.tokens) == {token}
    for (part, tensor), source in zip(concept.tokens[token].items(), stored.values(), strict=True):
        assert tensor.dtype is torch.float32 and tensor.shape == shapes[part]
        assert torch.equal(tensor, source.float().view(shapes[part]))


def test_embeddings_equal_diffusers(write, random, pipeline):
    path = write({"<zxa>": random(2, 32)})
    pipeline.load_textual_inversion(path, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<zxa>", "<zxa>_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(load(path).tokens["<zxa>"]["text_encoder"], table[ids])


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"clip_l": (4, 768)}, "contains clip_l, expected only emb_params, or clip_l with clip_g"),
        ({"clip_g": (4, 1280)}, "contains clip_g, expected only emb_params"),
        ({"clip_l": (4, 768), "text_encoders_1": (4, 1280)}, "expected only emb_params, or clip_l with clip_g"),
        ({"text_encoders_1": (4, 1280)}, "contains text_encoders_1, expected only"),
        ({"emb_params": (2, 768), "emb_params_out": (2, 768)}, "contains 'emb_params_out', output embeddings, which"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280), "clip_g_out": (2, 1280)}, "contains 'clip_g_out', output embeddi"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096)}, "contains 't5', embeddings for T5"),
        ({"clip_g": (4, 1280), "<zxa>": (4, 768)}, "contains <zxa>, clip_g, expected"),
        ({"<zxa>": (4, 1280)}, "token '<zxa>' has embeddings only for SDXL's second text encoder; put both"),
        ({"clip_l": (4, 768), "clip_g": (3, 1280)}, "embeddings text_encoder (4, 768), text_encoder_2 (3, 1280),"),
        ({"emb_params": (0, 768)}, "'mine' has embeddings text_encoder (0, 768), expected 1 to 75 vectors"),
        ({"emb_params": (76, 768)}, "'mine' has embeddings text_encoder (76, 768), expected 1 to 75 vectors"),
        ({"<my cat>": (1, 768)}, "invalid token '<my cat>'; rename the file to one printable word"),
        ({"<\x1b[31m>": (1, 768)}, "invalid token '<\\x1b[31m>'"),
        ({"weight": (4, 16)}, "contains 'weight', which is not an adapter layer"),
        ({"emb_params": (1, 2, 768)}, "contains 'emb_params', which is not an adapter layer"),
    ],
)  # fmt: skip
def test_incomplete_or_unusable_embeddings_are_rejected(write, tensors, expected):
    with pytest.raises(ConceptError) as caught:
        load(write({key: torch.ones(shape) for key, shape in tensors.items()}))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_non_finite_values_are_rejected(write):
    with pytest.raises(ConceptError, match="token 'mine' has non-finite embeddings; fetch the file again"):
        load(write({"emb_params": torch.full((1, 768), float("nan"))}))


def test_file_name_with_a_space_is_not_a_token(write):
    with pytest.raises(ConceptError, match="invalid token 'my cat'; rename the file to one printable word"):
        load(write({"emb_params": torch.ones(1, 768)}, "my cat"))


def test_tokens_are_in_the_order_of_the_trigger(write, random):
    tensors = {
        f"tokens.{part}.{w}": random(2, 8) for w in ("<a>", "<b.c>") for part in ("text_encoder", "text_encoder_2")
    }
    concept = load(write(tensors, costars=json.dumps({"trigger": "<b.c> <a>"})))
    assert list(concept.tokens) == ["<b.c>", "<a>"] and concept.trigger == "<b.c> <a>"
    assert {part for parts in concept.tokens.values() for part in parts} == {"text_encoder", "text_encoder_2"}


def test_costars_file_with_layers_and_embeddings(write, random):
    layer = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{layer}.lora_A.weight": random(2, 6), f"{layer}.lora_B.weight": random(5, 2)}
    concept = load(write(tensors | {"tokens.text_encoder.<a>": random(16, 768)}, costars='{"per_layer": true}'))
    assert (set(concept.adapter), set(concept.tokens), concept.per_layer) == ({layer}, {"<a>"}, True)


@pytest.mark.parametrize("key", ["tokens.text_encoder_2.<a>", "tokens.vae.<a>", "tokens.text_encoder."])
def test_embeddings_of_costars_files_are_checked(write, random, key):
    with pytest.raises(ConceptError, match=r"mine.safetensors: (token|invalid token) '"):
        load(write({key: random(2, 8)}))


def test_other_keys_beside_tokens_are_rejected(write, random):
    with pytest.raises(ConceptError, match="contains 'emb_params', which is not an adapter layer"):
        load(write({"tokens.text_encoder.<a>": random(2, 8), "emb_params": random(2, 768)}))


def test_unrelated_second_file_is_not_joined(write, random, tmp_path):
    one = write({"<zxa>": random(2, 768)}, "zxa")
    for other in ({"<zxa>": random(2, 768)}, {"<zxb>": random(2, 1280)}, {"emb_params": random(2, 768)}):
        write(other, "zxa_2")
        assert load(one).tokens.keys() == {"<zxa>"} and load(one).family == "sd15"
