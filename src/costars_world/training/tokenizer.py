"""The built-in model's tokenizer: each word of its captions is one token, other text is spelled by letters."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import ATTRIBUTES, CLASSES, describe_attributes, identity_from_seed

MAX_TOKENS = 77  # as in SDXL
_GRAMMAR = "a an and behind in front of to the left right next with on at picture drawing photo man's"
# Words without another meaning, for the triggers of concepts.
TRIGGER_WORDS = (
    "ana bo cleo dan eve finn gus hana ivo joy kai lena max nia otis pia quin rosa sam tia uma vito "
    "wes xena yuri zoe rex biscuit luna mochi bolt pixel gizmo rusty coco shadow turbo nova sprout"
).split()


def list_words() -> list[str]:
    """Return every word that a caption can contain, in a fixed order."""
    found = dict.fromkeys(_GRAMMAR.split())
    for place in PLACES.values():
        found.update(dict.fromkeys(place.phrase.split()))
    found.update(dict.fromkeys(CLASSES))
    for class_name, attributes in ATTRIBUTES.items():
        for values in attributes.values():
            found.update(dict.fromkeys(w for v in values for w in v.split()))
        for seed in range(400):
            for phrase in describe_attributes(identity_from_seed(seed, class_name)):
                found.update(dict.fromkeys(phrase.split()))
    found.update(dict.fromkeys(TRIGGER_WORDS))
    return [w for w in found if re.fullmatch(r"[a-z]+", w)]


def write_tokenizer(folder: Path, pad: str) -> int:
    """Write the files of a CLIP tokenizer; returns the vocabulary size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = ["!", *(c for c in alphabet if c != "!"), *(f"{c}</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    known = set(vocab)
    for word in sorted(list_words(), key=lambda w: (len(w), w)):
        pieces = _apply_merges([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges.append(pair)
            if "".join(pair) not in known:
                known.add("".join(pair))
                vocab.append("".join(pair))
            pieces = _apply_merges([*word[:-1], word[-1] + "</w>"], merges)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
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
    return len(vocab)


def _apply_merges(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply byte-pair merges in order of rank."""
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [(rank[p], i) for i, p in enumerate(pairwise(pieces)) if p in rank]
        if not pairs:
            return pieces
        i = min(pairs)[1]
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
