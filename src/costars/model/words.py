"""A prompt's words as token ids: emphasis, and prompts longer than one reading of the encoders.

Emphasis is written as people write it elsewhere: (word:1.2) sets a weight, (word) is 1.1 times and
[word] 1/1.1 times as strong, brackets nest, and \\( is a bracket that is meant as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from costars.errors import SceneError

T = TypeVar("T", int, float)
STRONGER = 1.1  # what one pair of brackets multiplies by, in AUTOMATIC1111's and ComfyUI's prompts
LONGEST_READINGS = 8  # 600 words; more is a text that was pasted by mistake
_PIECE = re.compile(r"\\[()\[\]\\]|\(|\[|:\s*([+-]?\d*\.?\d+)\s*\)|\)|\]|[^\\()\[\]:]+|:|\\")


@dataclass(frozen=True)
class Words:
    """A prompt as its encoder reads it: ids and weights (n readings, t), and where each token stands.

    tokens are (position in the n * t row, id) of the prompt's own tokens, without begin, end and padding.
    """

    ids: Tensor
    weights: Tensor
    tokens: tuple[tuple[int, int], ...]

    def spans(self, needle: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The positions of every run of tokens that spells the needle, in the prompt's order."""
        ids = tuple(i for _, i in self.tokens)
        starts = range(len(ids) - len(needle) + 1) if needle else ()
        found = [i for i in starts if ids[i : i + len(needle)] == needle]
        return tuple(tuple(p for p, _ in self.tokens[i : i + len(needle)]) for i in found)


def emphasised(prompt: str) -> list[tuple[str, float]]:
    """The prompt in parts of one weight each; brackets without a partner stand for themselves."""
    parts: list[tuple[str, float]] = []
    open_at: list[tuple[str, int]] = []
    for match in _PIECE.finditer(prompt):
        piece, weight = match.group(0), match.group(1)
        if piece in ("(", "["):
            open_at.append((piece, len(parts)))
            parts.append((piece, 1.0))  # stands for itself until its partner is found
        elif open_at and (weight is not None or piece == ")") and open_at[-1][0] == "(":
            _close(parts, open_at.pop()[1], STRONGER if weight is None else float(weight))
        elif open_at and piece == "]" and open_at[-1][0] == "[":
            _close(parts, open_at.pop()[1], 1 / STRONGER)
        else:
            parts.append((piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece, 1.0))
    return _joined(parts)


def _close(parts: list[tuple[str, float]], start: int, factor: float) -> None:
    parts[start:] = [(text, weight * factor) for text, weight in parts[start + 1 :]]


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined


def needle(tokenizer: CLIPTokenizer, words: str) -> tuple[int, ...]:
    """The token ids that spell these words."""
    return tuple(tokenizer(words).input_ids[1:-1])


def read(tokenizer: CLIPTokenizer, prompt: str) -> Words:
    """The prompt in as many readings as it needs, split between words, each padded to the encoder's length.

    Raises SceneError where it needs more than LONGEST_READINGS.
    """
    length = tokenizer.model_max_length
    readings = list(_readings(_words(tokenizer, prompt), length - 2)) or [[]]
    if len(readings) > LONGEST_READINGS:
        raise SceneError(
            f"prompt of {sum(map(len, readings))} tokens; at most {LONGEST_READINGS * (length - 2)} are read; "
            f"shorten {prompt[:60]!r}..."
        )
    ids, weights, tokens = [], [], []
    for k, reading in enumerate(readings):
        own = [i for i, _ in reading]
        tokens += [(k * length + 1 + j, i) for j, i in enumerate(own)]
        ids.append(_padded([tokenizer.bos_token_id, *own, tokenizer.eos_token_id], tokenizer.pad_token_id, length))
        weights.append(_padded([1.0, *(w for _, w in reading)], 1.0, length))
    return Words(torch.tensor(ids), torch.tensor(weights), tuple(tokens))


def _padded(values: list[T], filler: T, length: int) -> list[T]:
    return values + [filler] * (length - len(values))


def _words(tokenizer: CLIPTokenizer, prompt: str) -> Iterator[list[tuple[int, float]]]:
    """The (id, weight) of each word's tokens."""
    word: list[tuple[int, float]] = []
    for text, weight in emphasised(prompt):
        ids = needle(tokenizer, text)
        for i, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            word.append((i, weight))
            if token.endswith("</w>"):
                yield word
                word = []
    if word:
        yield word


def _readings(words: Iterator[list[tuple[int, float]]], room: int) -> Iterator[list[tuple[int, float]]]:
    reading: list[tuple[int, float]] = []
    for word in words:
        if reading and len(reading) + len(word) > room:
            yield reading
            reading = []
        reading = [*reading, *word]
        while len(reading) > room:  # one word longer than a whole reading
            yield reading[:room]
            reading = reading[room:]
    if reading:
        yield reading
