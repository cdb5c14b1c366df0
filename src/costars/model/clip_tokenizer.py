"""CLIP's tokenizer, from a configuration folder that need not have its vocabulary."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from costars.model.config_values import read_config

_MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a configuration folder; with CLIP's vocabulary if the folder has none."""
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    config = read_config(folder / "tokenizer_config.json")
    vocabulary, merges = _clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=config["pad_token"], model_max_length=config["model_max_length"]
    )


@cache
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """CLIP's vocabulary and merges (Radford et al. 2021; MIT licence): every byte, then every merge, in order."""
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    symbols = _byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


def _byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, printable bytes first (GPT-2's alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
