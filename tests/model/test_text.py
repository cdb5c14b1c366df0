"""Prompts to features: equal to diffusers and to the official code, and every word is found."""

import pytest
import torch
from safetensors.torch import load_file

from costars.errors import SceneError
from costars.model.lora import scaled, text_adapter
from costars.model.text_encoder import token_ids, word_spans


@pytest.mark.parametrize("prompt", ["photo of a man and a woman in the forest", "", "unknown wörds, 3!"])
def test_text_equals_the_pipeline_of_diffusers(tiny, pipeline, prompt):
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    text = tiny.encode_text(prompt)
    assert torch.allclose(text.tokens, tokens, atol=1e-6)
    assert torch.allclose(text.pooled, pooled, atol=1e-6)
    assert text.prompt == prompt


@pytest.mark.parametrize(
    ("name", "member", "prompt"),
    [
        ("global", None, "photo of a man and a woman in the forest"),
        ("region0", "a", "photo of a man smiling in the forest"),
        ("region1", "b", "photo of a woman with red hat in the forest"),
    ],
)
def test_text_with_an_adapter_equals_the_official_code(tiny, golden, concepts, name, member, prompt):
    told = load_file(golden / "two_stage.safetensors")
    with text_adapter(tiny.encoders, scaled(concepts[member].adapter, 0.8) if member else {}):
        text = tiny.encode_text(prompt)
    assert torch.allclose(text.tokens, told[f"{name}.prompt_embeds"], atol=1e-5, rtol=0)
    assert torch.allclose(text.pooled, told[f"{name}.pooled_prompt_embeds"], atol=1e-5, rtol=0)


def spelled(tiny, prompt: str, spans) -> list[str]:
    tokenizer = tiny.encoders[0].tokenizer
    ids = tokenizer(prompt).input_ids
    return [tokenizer.decode([ids[i] for i in span]).strip() for span in spans]


@pytest.mark.parametrize(
    ("prompt", "word", "count"),
    [
        ("a man and a woman", "man", 1),
        ("a man, a man and a man", "man", 3),
        ("a woman in the forest", "man", 0),
        ("photo of a robotic dinosaur and a woman", "robotic dinosaur", 1),
    ],
)
def test_every_occurrence_of_a_word_is_found_and_nothing_else(tiny, prompt, word, count):
    spans = word_spans(tiny.encoders[0].tokenizer, prompt, word)
    assert spelled(tiny, prompt, spans) == [word] * count
    assert tiny.encode_text(prompt, [word]).spans == {word: spans}


def test_a_prompt_of_just_the_longest_length_is_read(tiny):
    prompt = " ".join(["a"] * 75)
    assert token_ids(tiny.encoders[0].tokenizer, prompt).shape == (1, 77)


def test_where_one_reading_is_wanted_a_longer_prompt_is_refused_not_cut(tiny):
    with pytest.raises(SceneError, match="prompt of 78 tokens, but the model reads 77; shorten 'a a a"):
        token_ids(tiny.encoders[0].tokenizer, " ".join(["a"] * 76))


def test_a_longer_prompt_is_read_in_several_readings(tiny):
    text = tiny.encode_text(" ".join(["a"] * 70 + ["man"] * 10), ["man"])
    first, second = tiny.encode_text(" ".join(["a"] * 70 + ["man"] * 5)), tiny.encode_text(" ".join(["man"] * 5))
    assert text.tokens.shape == (1, 154, 64)
    assert torch.allclose(text.tokens, torch.cat([first.tokens, second.tokens], dim=1), atol=1e-6)
    assert torch.equal(text.pooled, first.pooled)
    assert text.spans["man"] == (*((71 + i,) for i in range(5)), *((78 + i,) for i in range(5)))


def test_a_prompt_beyond_all_measure_is_refused(tiny):
    with pytest.raises(SceneError, match=r"prompt of 601 tokens; at most 600 are read; shorten 'a a a"):
        tiny.encode_text(" ".join(["a"] * 601))


def test_emphasis_scales_the_words_and_keeps_the_mean(tiny):
    plain, strong = (tiny.encode_text(p).tokens for p in ("a man in the forest", "a (man:1.5) in the forest"))
    ratio = strong / plain
    assert torch.allclose(strong.mean(), plain.mean(), atol=1e-6)
    assert torch.allclose(ratio[0, 2], ratio[0, 0] * 1.5, rtol=1e-3)
    assert torch.equal(tiny.encode_text("a (man:1.0) in the forest").tokens, plain)


def test_sd15_reads_the_last_layer_and_sdxl_the_last_but_one_unless_told_otherwise(tiny, pipeline):
    assert torch.equal(tiny.encode_text("a man", (), 2).tokens, tiny.encode_text("a man").tokens)
    expected, *_ = pipeline.encode_prompt("a man", do_classifier_free_guidance=False, clip_skip=1)
    assert torch.allclose(tiny.encode_text("a man", (), 3).tokens, expected, atol=1e-6)


def learned(tiny, vectors=2, layers=1, seed=0):
    """A word for both encoders: (layers, vectors, width) each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "<toy>": {
            e.name: 0.1 * torch.randn(layers, vectors, e.module.config.hidden_size, generator=generator)
            for e in tiny.encoders
        }
    }


def test_a_learned_word_equals_textual_inversion_in_diffusers(tiny, pipeline):
    words = learned(tiny)
    for encoder, tokenizer, text_encoder in zip(
        tiny.encoders,
        (pipeline.tokenizer, pipeline.tokenizer_2),
        (pipeline.text_encoder, pipeline.text_encoder_2),
        strict=True,
    ):
        vectors = words["<toy>"][encoder.name][0]
        pipeline.load_textual_inversion(vectors, token="<toy>", tokenizer=tokenizer, text_encoder=text_encoder)
    expected, _, pooled, _ = pipeline.encode_prompt(
        "photo of <toy> and a man", do_classifier_free_guidance=False, negative_prompt=""
    )
    text = tiny.encode_text("photo of <toy> and a man", ["man", "<toy>"], learned=words)
    assert torch.allclose(text.tokens, expected, atol=1e-6)
    assert text.spans == {"<toy>": ((3, 4),), "man": ((7,),)}
    assert pooled.shape == text.pooled.shape


def test_without_the_word_nothing_changes(tiny):
    plain = tiny.encode_text("a toy and a man")
    assert torch.equal(tiny.encode_text("a toy and a man", learned=learned(tiny)).tokens, plain.tokens)


def test_a_learned_word_may_be_emphasised_and_stand_in_any_reading(tiny):
    words = learned(tiny)
    prompt = " ".join(["a"] * 74 + ["(<toy>:1.3)"])
    text = tiny.encode_text(prompt, ["<toy>"], learned=words)
    assert text.spans["<toy>"] == ((78, 79),)
    alone = tiny.encode_text("<toy>", learned=words).tokens
    assert torch.allclose(
        text.tokens[0, 78] / alone[0, 1] * alone[0, 3] / text.tokens[0, 80], torch.tensor(1.3), rtol=1e-3
    )


def test_every_layer_may_read_a_vector_of_its_own(tiny):
    words = learned(tiny, vectors=1, layers=17)
    text = tiny.encode_text("a <toy> man", learned=words)
    assert text.tokens.shape == (17, 77, 64)
    for layer in (0, 16):
        own = {"<toy>": {part: v[layer : layer + 1] for part, v in words["<toy>"].items()}}
        assert torch.allclose(text.tokens[layer], tiny.encode_text("a <toy> man", learned=own).tokens[0], atol=1e-5)


def test_nothing_is_left_on_the_encoders(tiny, trace):
    before = [trace(e.module) for e in tiny.encoders]
    tiny.encode_text("a <toy> man", learned=learned(tiny))
    assert [trace(e.module) for e in tiny.encoders] == before


def test_a_word_that_one_encoder_was_not_taught_is_refused(tiny):
    words = learned(tiny)
    del words["<toy>"]["text_encoder_2"]
    with pytest.raises(SceneError, match="'<toy>' was not taught to this model's text_encoder_2"):
        tiny.encode_text("a <toy> man", learned=words)
