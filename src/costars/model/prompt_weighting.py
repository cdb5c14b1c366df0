"""Prompts as token ids with weights: emphasis, long prompts and learned words.

The syntax is that of `scene.prompt_syntax`. A prompt longer than the text encoder's context is split into chunks
between words (AUTOMATIC1111 goes back to the last comma), and at each BREAK.
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
from costars.scene.prompt_syntax import Weighted, parse_emphasis, parse_sections

T = TypeVar("T", int, float)
NO_VECTORS: Mapping[str, int] = MappingProxyType({})
MAX_CHUNKS = 8  # 600 tokens; a longer prompt was probably pasted by mistake


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt as its text encoder reads it, in n chunks of t tokens.

    ids and weights are (n, t). tokens are (position, id) of the prompt's own tokens, without start, end and padding
    tokens; learned are (position, word, index of its vector) where a learned vector replaces the token embedding.
    Positions count over all n * t tokens.
    """

    ids: Tensor
    weights: Tensor
    tokens: tuple[tuple[int, int], ...]
    learned: tuple[tuple[int, str, int], ...] = ()

    def find_spans(self, word_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Token positions of every occurrence of these token ids, in the prompt's order."""
        ids = tuple(i for _, i in self.tokens)
        starts = range(len(ids) - len(word_ids) + 1) if word_ids else ()
        found = [i for i in starts if ids[i : i + len(word_ids)] == word_ids]
        return tuple(tuple(p for p, _ in self.tokens[i : i + len(word_ids)]) for i in found)


def tokenize_words(tokenizer: CLIPTokenizer, words: str, vectors: Mapping[str, int] = NO_VECTORS) -> tuple[int, ...]:
    """The token ids of words that are written as in a prompt; the ids of learned words lie beyond the vocabulary."""
    return tuple(i for word in _iterate_words(tokenizer, parse_emphasis(words), vectors) for i, _ in word)


def parse_prompt(
    tokenizer: CLIPTokenizer, prompt: str, vectors: Mapping[str, int] = NO_VECTORS, *, plain: bool = False
) -> ParsedPrompt:
    """The prompt in as many chunks as it needs, split between words, each padded to the encoder's context.

    vectors is {learned word: number of its vectors}; with plain all characters are literal. Raises SceneError if the
    prompt needs more than MAX_CHUNKS chunks, and for syntax that is not supported.
    """
    length, known = tokenizer.model_max_length, len(tokenizer)
    assert length > 2, "checked when the model is loaded: start and end tokens alone fill two"
    sections = [[(prompt, 1.0)]] if plain else parse_sections(prompt)
    chunks = list[list[tuple[int, float]]]()
    for section in sections:
        chunks += list(_split_chunks(_iterate_words(tokenizer, section, vectors), length - 2)) or [[]]
    if len(chunks) > MAX_CHUNKS:
        breaks = f" in {len(chunks)} chunks" if len(sections) > 1 else ""
        limit = f"{MAX_CHUNKS} chunks" if breaks else f"{MAX_CHUNKS * (length - 2)}"
        raise SceneError(
            f"prompt has {sum(map(len, chunks))} tokens{breaks}; the limit is {limit}; shorten {prompt[:60]!r}..."
        )
    ids, weights, tokens = [], [], []
    for k, chunk in enumerate(chunks):
        tokens += [(k * length + 1 + j, i) for j, (i, _) in enumerate(chunk)]
        own = [i if i < known else 0 for i, _ in chunk]
        ids.append(_pad([tokenizer.bos_token_id, *own, tokenizer.eos_token_id], tokenizer.pad_token_id, length))
        weights.append(_pad([1.0, *(w for _, w in chunk)], 1.0, length))
    numbered = [(word, j) for word, count in vectors.items() for j in range(count)]
    learned = tuple((p, *numbered[i - known]) for p, i in tokens if i >= known)
    return ParsedPrompt(torch.tensor(ids), torch.tensor(weights), tuple(tokens), learned)


def _pad(values: list[T], filler: T, length: int) -> list[T]:
    return values + [filler] * (length - len(values))


def _iterate_words(
    tokenizer: CLIPTokenizer, parts: list[Weighted], vectors: Mapping[str, int]
) -> Iterator[list[tuple[int, float]]]:
    """The (id, weight) of each word's tokens."""
    first_ids = dict(zip(vectors, accumulate(vectors.values(), initial=len(tokenizer)), strict=False))
    for part, weight in parts:
        for text in _split_learned(part, vectors):
            if text in vectors:
                yield [(first_ids[text] + j, weight) for j in range(vectors[text])]
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


def _split_learned(text: str, vectors: Mapping[str, int]) -> list[str]:
    """The text in pieces, with every learned word that is a whole word in a piece of its own."""
    if not vectors:
        return [text]
    either = "|".join(re.escape(word) for word in sorted(vectors, key=len, reverse=True))
    return [piece for piece in re.split(rf"(?<!\w)({either})(?!\w)", text) if piece]


def _split_chunks(words: Iterator[list[tuple[int, float]]], room: int) -> Iterator[list[tuple[int, float]]]:
    chunk: list[tuple[int, float]] = []
    for word in words:
        if chunk and len(chunk) + len(word) > room:
            yield chunk
            chunk = []
        chunk = [*chunk, *word]
        while len(chunk) > room:  # one word longer than a chunk
            yield chunk[:room]
            chunk = chunk[room:]
    if chunk:
        yield chunk
