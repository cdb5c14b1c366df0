"""Prompts as token ids: words are found, and long prompts are limited."""

import pytest

from costars.errors import SceneError
from costars.model.text_encoder import word_spans


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
    spans = word_spans(tiny.encoders[0].tokenizer, prompt, word)
    assert spelled(tiny, prompt, spans) == [word] * count
    assert tiny.encode_text(prompt, [word]).spans == {word: spans}


def test_too_long_prompt_is_rejected(tiny):
    with pytest.raises(SceneError, match=r"prompt has 601 tokens; the limit is 600; shorten 'a a a"):
        tiny.encode_text(" ".join(["a"] * 601))
