"""Prompts to features: equal to diffusers and to the official code, and every word is found."""

import pytest
import torch
from safetensors.torch import load_file

from costars.errors import SceneError
from costars.model.adapters import scaled, text_adapter
from costars.model.text import token_ids, word_spans


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
