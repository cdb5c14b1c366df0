"""The tokenizer: every word of the world is one token, other text is spelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

MAX_TOKENS = 77  # as SDXL
PADS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # as SDXL's two
# Words without a meaning of their own, as in version 1: a concept takes one as its trigger.
NAMES = (
    "ana bo cleo dan eve finn gus hana ivo joy kai lena max nia otis pia quin rosa sam tia uma vito "
    "wes xena yuri zoe rex biscuit luna mochi bolt pixel gizmo rusty coco shadow turbo nova sprout"
).split()


def write_tokenizers(folder: Path, words: Iterable[str]) -> int:
    """Write both tokenizers of an SDXL folder for these words and the names; returns the size of their vocabulary."""
    vocab, merges = _vocabulary([w for w in dict.fromkeys([*words, *NAMES]) if re.fullmatch(r"[a-z]+", w)])
    for name, pad in PADS.items():
        _write(folder / name, vocab, merges, pad)
    return len(vocab)


def _vocabulary(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and byte-pair merges by which each word becomes one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = ["!", *(c for c in alphabet if c != "!"), *(f"{c}</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    rank: dict[tuple[str, str], int] = {}
    known = set(vocab)
    for word in sorted(words, key=lambda w: (len(w), w)):
        pieces = _split([*word[:-1], word[-1] + "</w>"], rank)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            rank[pair] = len(merges)
            merges.append(pair)
            if "".join(pair) not in known:
                known.add("".join(pair))
                vocab.append("".join(pair))
            pieces = _split([*word[:-1], word[-1] + "</w>"], rank)
    return [*vocab, "<|startoftext|>", "<|endoftext|>"], merges


def _split(pieces: list[str], rank: dict[tuple[str, str], int]) -> list[str]:
    """Apply byte-pair merges in their order of rank."""
    while True:
        pairs = [(rank[p], i) for i, p in enumerate(pairwise(pieces)) if p in rank]
        if not pairs:
            return pieces
        i = min(pairs)[1]
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


def _write(folder: Path, vocab: list[str], merges: list[tuple[str, str]], pad: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocab)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {
        **special,
        "pad_token": pad,
        "do_lower_case": True,
        "model_max_length": MAX_TOKENS,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}, indent=2) + "\n")


class CaptionEncoder:
    """Token ids of many captions, fast: CLIP's merges never cross a space, so ids are kept chunk by chunk."""

    def __init__(self, tokenizers: Sequence[CLIPTokenizer]) -> None:
        self.tokenizers = tuple(tokenizers)
        self.known: dict[str, list[int]] = {}

    def __call__(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """(2, n, 77) ids of both tokenizers, with start, end and padding; longer captions are cut."""
        first = self.tokenizers[0]
        out = np.empty((len(self.tokenizers), len(captions), MAX_TOKENS), dtype=np.int32)
        for k, tokenizer in enumerate(self.tokenizers):
            out[k] = tokenizer.pad_token_id
        for i, caption in enumerate(captions):
            ids = [token for chunk in caption.split() for token in self._ids(chunk)][: MAX_TOKENS - 2]
            ids = [first.bos_token_id, *ids, first.eos_token_id]
            out[:, i, : len(ids)] = ids
        return out

    def _ids(self, chunk: str) -> list[int]:
        if chunk not in self.known:
            self.known[chunk] = self.tokenizers[0](chunk, add_special_tokens=False).input_ids
        return self.known[chunk]


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Both tokenizers of an SDXL folder."""
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in PADS)
    return first, second
