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
    tokenizer = tiny.encoders.tokenizer
    ids = tokenizer(prompt).input_ids
    return [tokenizer.decode(ids[span]).strip() for span in spans]


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
    spans = word_spans(tiny.encoders.tokenizer, prompt, word)
    assert spelled(tiny, prompt, spans) == [word] * count
    assert tiny.encode_text(prompt, [word]).spans == {word: spans}


def test_a_prompt_of_just_the_longest_length_is_read(tiny):
    prompt = " ".join(["a"] * 75)
    assert token_ids(tiny.encoders.tokenizer, prompt).shape == (1, 77)


def test_a_longer_prompt_is_refused_not_cut(tiny):
    with pytest.raises(SceneError, match="prompt of 78 tokens, but the model reads 77; shorten 'a a a"):
        tiny.encode_text(" ".join(["a"] * 76))
