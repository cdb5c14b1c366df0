"""A prompt's words as token ids: emphasis, and prompts longer than one reading of the encoders.

Emphasis is written as people write it elsewhere: (word:1.2) sets a weight, (word) is 1.1 times and
[word] 1/1.1 times as strong, brackets nest, and \\( is a bracket that is meant as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from costars.errors import SceneError

T = TypeVar("T", int, float)
NOTHING: Mapping[str, int] = MappingProxyType({})
STRONGER = 1.1  # what one pair of brackets multiplies by, in AUTOMATIC1111's and ComfyUI's prompts
LONGEST_READINGS = 8  # 600 words; more is a text that was pasted by mistake
_PIECE = re.compile(r"\\[()\[\]\\]|\(|\[|:\s*([+-]?\d*\.?\d+)\s*\)|\)|\]|[^\\()\[\]:]+|:|\\")


@dataclass(frozen=True)
class Words:
    """A prompt as its encoder reads it: ids and weights (n readings, t), and where each token stands.

    tokens are (position in the n * t row, id) of the prompt's own tokens, without begin, end and padding;
    learned are (position, word, which of its vectors) where the encoder takes a vector in place of an id.
    """

    ids: Tensor
    weights: Tensor
    tokens: tuple[tuple[int, int], ...]
    learned: tuple[tuple[int, str, int], ...] = ()

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


def unemphasised(words: str) -> str:
    """Words with brackets that are meant as brackets, not as emphasis."""
    return re.sub(r"([\\()\[\]])", r"\\\1", words)


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


def needle(tokenizer: CLIPTokenizer, words: str, learned: Mapping[str, int] = NOTHING) -> tuple[int, ...]:
    """The token ids that spell these words; a learned word has ids of its own, beyond the vocabulary."""
    return tuple(i for word in _words(tokenizer, [(words, 1.0)], learned) for i, _ in word)


def read(tokenizer: CLIPTokenizer, prompt: str, learned: Mapping[str, int] = NOTHING) -> Words:
    """The prompt in as many readings as it needs, split between words, each padded to the encoder's length.

    learned is {word: how many vectors it has}. Raises SceneError where it needs more than LONGEST_READINGS.
    """
    length, known = tokenizer.model_max_length, len(tokenizer)
    readings = list(_readings(_words(tokenizer, emphasised(prompt), learned), length - 2)) or [[]]
    if len(readings) > LONGEST_READINGS:
        raise SceneError(
            f"prompt of {sum(map(len, readings))} tokens; at most {LONGEST_READINGS * (length - 2)} are read; "
            f"shorten {prompt[:60]!r}..."
        )
    ids, weights, tokens = [], [], []
    for k, reading in enumerate(readings):
        tokens += [(k * length + 1 + j, i) for j, (i, _) in enumerate(reading)]
        own = [i if i < known else 0 for i, _ in reading]
        ids.append(_padded([tokenizer.bos_token_id, *own, tokenizer.eos_token_id], tokenizer.pad_token_id, length))
        weights.append(_padded([1.0, *(w for _, w in reading)], 1.0, length))
    numbered = [(word, j) for word, count in learned.items() for j in range(count)]
    vectors = tuple((p, *numbered[i - known]) for p, i in tokens if i >= known)
    return Words(torch.tensor(ids), torch.tensor(weights), tuple(tokens), vectors)


def _padded(values: list[T], filler: T, length: int) -> list[T]:
    return values + [filler] * (length - len(values))


def _words(
    tokenizer: CLIPTokenizer, parts: list[tuple[str, float]], learned: Mapping[str, int]
) -> Iterator[list[tuple[int, float]]]:
    """The (id, weight) of each word's tokens."""
    firsts = dict(zip(learned, accumulate(learned.values(), initial=len(tokenizer)), strict=False))
    for whole, weight in parts:
        for text in _split(whole, learned):
            if text in learned:
                yield [(firsts[text] + j, weight) for j in range(learned[text])]
                continue
            word: list[tuple[int, float]] = []
            ids = list(tokenizer(text).input_ids[1:-1])
            for i, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
                word.append((i, weight))
                if token.endswith("</w>"):
                    yield word
                    word = []
            if word:
                yield word


def _split(text: str, learned: Mapping[str, int]) -> list[str]:
    """The text with every learned word, where it stands as a word, in a piece of its own."""
    if not learned:
        return [text]
    either = "|".join(re.escape(word) for word in sorted(learned, key=len, reverse=True))
    return [piece for piece in re.split(rf"(?<!\w)({either})(?!\w)", text) if piece]


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
