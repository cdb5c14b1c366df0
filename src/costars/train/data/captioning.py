"""Captions for pictures that have none, by BLIP, BLIP-2 or Florence-2 through transformers.

OMG captions the pictures of a character by BLIP-2 (Kong et al. 2024, arXiv 2403.10983, section 4.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Florence2Processor

from costars.errors import ModelError
from costars.model.hub import PART, fetched, is_hub_id
from costars.segment.checkpoint import Checkpoint, Kind, open_checkpoint

MAX_NEW_TOKENS = 40  # a caption of a sentence or two; what is longer CLIP's 77 tokens would cut off
FLORENCE_TASK = "<CAPTION>"  # its shortest caption; the detailed ones are longer than MOST_TOKENS
_TOKENIZER = "PreTrainedTokenizerFast"
BLIP = Kind(
    "blip",
    "BlipForConditionalGeneration",
    "BlipImageProcessorPil",
    _TOKENIZER,
    "Salesforce/blip-image-captioning-large",
)
BLIP2 = Kind(
    "blip-2", "Blip2ForConditionalGeneration", "BlipImageProcessorPil", _TOKENIZER, "Salesforce/blip2-opt-2.7b"
)
FLORENCE2 = Kind(
    "florence2",
    "Florence2ForConditionalGeneration",
    "CLIPImageProcessorPil",
    _TOKENIZER,
    "florence-community/Florence-2-base",
)
KINDS = {kind.model_type: kind for kind in (BLIP, BLIP2, FLORENCE2)}
# Beams of each one's own example: BLIP's captioning demo, LAVIS for BLIP-2, Florence-2's model card.
BEAMS = {BLIP.model_type: 3, BLIP2.model_type: 5, FLORENCE2.model_type: 3}


@dataclass(frozen=True)
class Captioner:
    """A loaded model that says what is to be seen; prepare makes its inputs of a picture, beams is of its search."""

    checkpoint: Checkpoint
    prepare: Callable[..., Any]
    beams: int

    def __call__(self, image: Image.Image) -> str:
        """One line of at most MOST_TOKENS tokens, the same at every call; "" where the model says nothing."""
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        inputs = self.prepare(images=image.convert("RGB")).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=self.beams)
        return " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())


def load_captioner(
    source: str, device: torch.device, dtype: torch.dtype, offline: bool = False, base: Path | None = None
) -> Captioner:
    """The model of a folder, a relative one beside base, or of a hub id (org/name or org/name@revision).

    Safetensors only, and no code from outside. Raises ModelError if it is not there, is no captioning model
    that costars knows, or is not whole.
    """
    folder = _folder(source, base, offline)
    kind = _kind(folder, source)
    checkpoint = open_checkpoint(kind, str(folder), device, dtype, offline=True)
    return Captioner(checkpoint, _prepare(checkpoint, kind, source), BEAMS[kind.model_type])


def insert_trigger(caption: str, class_name: str, trigger: str) -> str:
    """The caption with the trigger before the class word, where that is first named; before it all where it is not.

    "a woman in a park" is "an ana woman in a park", "two people" is "an ana woman, two people"; a caption
    with the trigger in it stays.
    """
    if contains_word(caption, trigger):
        return caption
    found = re.search(_whole(class_name), caption, re.IGNORECASE) if class_name else None
    if not found:
        return f"{_article(trigger)} {trigger} {class_name}".rstrip() + (f", {caption}" if caption else "")
    n = _article(trigger)[1:]
    led = re.sub(r"\b(a)n?(\s+)$", rf"\g<1>{n}\g<2>", caption[: found.start()], flags=re.IGNORECASE)
    return f"{led}{trigger} {caption[found.start() :]}"


def class_caption(class_name: str) -> str:
    """What a picture of the class is called where nobody described it: "a woman"."""
    return f"{_article(class_name)} {class_name}"


def contains_word(caption: str, word: str) -> bool:
    """Whether the word stands in the caption as a whole one, in capitals or not."""
    return re.search(_whole(word), caption, re.IGNORECASE) is not None


def _whole(word: str) -> str:
    return rf"(?<![\w-]){re.escape(word)}(?![\w-])"


def _article(word: str) -> str:
    return "an" if word[:1].lower() in tuple("aeiou") else "a"


def _folder(source: str, base: Path | None, offline: bool) -> Path:
    folder = (base or Path()) / Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise ModelError(f"captioner {source!r}: no such folder; give one, or a hub id such as {BLIP2.example}")
    return fetched(source, PART, offline=offline, what="captioner")


def _kind(folder: Path, source: str) -> Kind:
    want = f"give {', '.join(f'{kind.model_type} such as {kind.example}' for kind in KINDS.values())}"
    try:
        found = dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))).get("model_type")
    except OSError:
        raise ModelError(f"captioner {source!r}: no config.json there; {want}") from None
    except (ValueError, TypeError):
        raise ModelError(f"captioner {source!r}: its config.json is damaged; fetch it again") from None
    if not isinstance(found, str) or found not in KINDS:
        raise ModelError(f"captioner {source!r}: its model_type is {found!r}, known: {', '.join(KINDS)}; {want}")
    return KINDS[found]


def _prepare(checkpoint: Checkpoint, kind: Kind, source: str) -> Callable[..., Any]:
    """What makes a model's inputs of a picture: BLIP sees the pixels, Florence-2 a task in words too."""
    again = f"its files are older than transformers wants; give {kind.example}"
    if kind is BLIP2 and checkpoint.model.config.image_token_index is None:
        raise ModelError(f"captioner {source!r}: its config.json has no image_token_index; {again}")
    if kind is not FLORENCE2:
        return partial(checkpoint.images, return_tensors="pt")
    try:
        processor = Florence2Processor(checkpoint.images, checkpoint.tokenizer)
    except AttributeError as error:
        raise ModelError(f"captioner {source!r}: {' '.join(str(error).split())[:200]}; {again}") from error
    return partial(processor, text=FLORENCE_TASK, return_tensors="pt")
