"""Caption images that have no caption, with BLIP, BLIP-2 or Florence-2 through transformers.

OMG captions the training images of a character with BLIP-2 (Kong et al. 2024, arXiv 2403.10983, section 4.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Florence2Processor

from costars.errors import ModelError, ReadError
from costars.files.regular_file import expand_user
from costars.model.config_values import read_config
from costars.model.hub import COMPONENT_PATTERNS, download_from_hub
from costars.scene.names import is_hub_id
from costars.segment.checkpoint import Checkpoint, CheckpointKind, open_checkpoint

MAX_NEW_TOKENS = 40  # a sentence or two; CLIP truncates prompts at 77 tokens
FLORENCE_TASK = "<CAPTION>"  # the shortest kind of caption; the detailed kinds exceed MAX_NEW_TOKENS
_TOKENIZER = "PreTrainedTokenizerFast"
BLIP = CheckpointKind(
    "blip",
    "BlipForConditionalGeneration",
    "BlipImageProcessorPil",
    _TOKENIZER,
    "Salesforce/blip-image-captioning-large",
)
BLIP2 = CheckpointKind(
    "blip-2", "Blip2ForConditionalGeneration", "BlipImageProcessorPil", _TOKENIZER, "Salesforce/blip2-opt-2.7b"
)
FLORENCE2 = CheckpointKind(
    "florence2",
    "Florence2ForConditionalGeneration",
    "CLIPImageProcessorPil",
    _TOKENIZER,
    "florence-community/Florence-2-base",
)
KINDS = {kind.model_type: kind for kind in (BLIP, BLIP2, FLORENCE2)}
# Beam counts from each model's own example: BLIP's captioning demo, LAVIS for BLIP-2, Florence-2's model card.
NUM_BEAMS = {BLIP.model_type: 3, BLIP2.model_type: 5, FLORENCE2.model_type: 3}


@dataclass(frozen=True)
class Captioner:
    """A loaded captioning model; preprocess turns an image into its inputs."""

    checkpoint: Checkpoint
    preprocess: Callable[..., Any]
    num_beams: int

    def __call__(self, image: Image.Image) -> str:
        """Caption an image in one line of at most MAX_NEW_TOKENS tokens; deterministic, may be empty."""
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        inputs = self.preprocess(images=image.convert("RGB")).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=self.num_beams)
        return " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())


def load_captioner(source: str, device: torch.device, dtype: torch.dtype, offline: bool = False) -> Captioner:
    """Load a captioning model from a folder or a hub id (org/name or org/name@revision).

    Only safetensors weights are read, and no remote code is run. Raises ModelError if the model is missing,
    incomplete or not a supported captioning model.
    """
    folder = _find_folder(source, offline)
    kind = _detect_kind(folder, source)
    checkpoint = open_checkpoint(kind, str(folder), device, dtype, offline=True)
    return Captioner(checkpoint, _make_preprocess(checkpoint, kind, source), NUM_BEAMS[kind.model_type])


def insert_trigger(caption: str, class_name: str, trigger: str) -> str:
    """Insert the trigger before the first class word, or at the start of a caption without the class word.

    "a woman in a park" becomes "an ana woman in a park", "two people" becomes "an ana woman, two people".
    A caption that contains the trigger is returned unchanged.
    """
    if contains_word(caption, trigger):
        return caption
    found = re.search(_word_pattern(class_name), caption, re.IGNORECASE) if class_name else None
    if not found:
        return f"{_article(trigger)} {trigger} {class_name}".rstrip() + (f", {caption}" if caption else "")
    n = _article(trigger)[1:]
    before = re.sub(r"\b(a)n?(\s+)$", rf"\g<1>{n}\g<2>", caption[: found.start()], flags=re.IGNORECASE)
    return f"{before}{trigger} {caption[found.start() :]}"


def class_caption(class_name: str) -> str:
    """The default caption of a class image, e.g. "a woman"."""
    return f"{_article(class_name)} {class_name}"


def contains_word(caption: str, word: str) -> bool:
    """Whether the caption contains the word as a whole word, ignoring case."""
    return re.search(_word_pattern(word), caption, re.IGNORECASE) is not None


def _word_pattern(word: str) -> str:
    return rf"(?<![\w-]){re.escape(word)}(?![\w-])"


def _article(word: str) -> str:
    return "an" if word[:1].lower() in tuple("aeiou") else "a"


def _find_folder(source: str, offline: bool) -> Path:
    folder = expand_user(source)
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise ModelError(f"captioner {source!r}: folder not found; give a folder or a hub id such as {BLIP2.example}")
    return download_from_hub(source, COMPONENT_PATTERNS, offline=offline, what="captioner")


def _detect_kind(folder: Path, source: str) -> CheckpointKind:
    supported = f"use {', '.join(f'{kind.model_type} such as {kind.example}' for kind in KINDS.values())}"
    try:
        if not (folder / "config.json").is_file():
            raise ModelError(f"captioner {source!r}: the folder has no config.json; {supported}")
        model_type = read_config(folder / "config.json").get("model_type")
    except ReadError:
        raise ModelError(f"captioner {source!r}: config.json is not valid JSON; download the model again") from None
    if not isinstance(model_type, str) or model_type not in KINDS:
        raise ModelError(f"captioner {source!r}: model_type {model_type!r} is not supported; {supported}")
    return KINDS[model_type]


def _make_preprocess(checkpoint: Checkpoint, kind: CheckpointKind, source: str) -> Callable[..., Any]:
    """The function from an image to model inputs; Florence-2 also takes a task prompt."""
    outdated = f"the files are too old for this version of transformers; use {kind.example}"
    if kind is BLIP2 and checkpoint.model.config.image_token_index is None:
        raise ModelError(f"captioner {source!r}: config.json has no image_token_index; {outdated}")
    if kind is not FLORENCE2:
        return partial(checkpoint.image_processor, return_tensors="pt")
    try:
        processor = Florence2Processor(checkpoint.image_processor, checkpoint.tokenizer)
    except AttributeError as error:
        raise ModelError(f"captioner {source!r}: {' '.join(str(error).split())[:200]}; {outdated}") from error
    return partial(processor, text=FLORENCE_TASK, return_tensors="pt")
