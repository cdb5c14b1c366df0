"""Prompts as token ids: emphasis, positions of words, and limits."""

import time

import pytest

from costars.errors import SceneError
from costars.model.prompt_weighting import parse_prompt
from costars.model.text_encoder import find_word_spans
from costars.scene.prompt_syntax import parse_emphasis


def test_long_prompt_is_split_between_words(tiny):
    prompt = parse_prompt(tiny.encoders[0].tokenizer, " ".join(["a"] * 76))
    assert prompt.ids.shape == prompt.weights.shape == (2, 77)
    assert [position for position, _ in prompt.tokens] == [*range(1, 76), 78]


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
def test_word_spans_finds_every_occurrence(tiny, prompt, word, count):
    spans = find_word_spans(tiny.encoders[0].tokenizer, prompt, word)
    assert spelled(tiny, prompt, spans) == [word] * count
    assert tiny.encode_text(prompt, [word]).spans == {word: spans}


def test_too_long_prompt_is_rejected(tiny):
    with pytest.raises(SceneError, match=r"prompt has 601 tokens; the limit is 600; shorten 'a a a"):
        tiny.encode_text(" ".join(["a"] * 601))


@pytest.mark.parametrize(
    "text", [":" + "1" * 20_000, ": " + " " * 20_000, "a" * 20_000, ":1" * 10_000, "\\" * 20_000, "(" * 20_000]
)
def test_time_to_parse_a_prompt_is_linear(text):
    began = time.process_time()
    assert "".join(part for part, _ in parse_emphasis(text)).replace("\\", "") == text.replace("\\", "")
    assert time.process_time() - began < 1
