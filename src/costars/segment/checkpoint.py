"""Loads vision models of transformers from a folder or a hub id; safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from costars.errors import ModelError, ReadError, SceneError, to_one_line
from costars.files.regular_file import expand_user
from costars.model.components import load_component
from costars.model.config_values import read_config
from costars.model.hub import COMPONENT_PATTERNS, download_from_hub
from costars.scene.names import is_hub_id

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class CheckpointKind:
    """The model_type of a checkpoint and the transformers classes that load it.

    image_processor is a `...Pil` class, because the others need torchvision. example is the hub id that error
    messages name.
    """

    model_type: str
    model: str
    image_processor: str
    tokenizer: str | None
    example: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its image processor and its tokenizer (None if the model reads no text)."""

    model: Any
    image_processor: Any
    tokenizer: Any

    def run(self, **inputs: Any) -> Any:
        """Call the model; tensors are moved to its device and floating-point tensors to its dtype."""
        device, dtype = self.model.device, self.model.dtype
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        return self.model(**moved)


def open_checkpoint(
    kind: CheckpointKind, source: str, device: torch.device, dtype: torch.dtype, *, offline: bool
) -> Checkpoint:
    """Load a model from a folder or a hub id (org/name or org/name@revision), in eval mode.

    Raises ModelError if it is missing, incomplete, of another kind, or has no safetensors weights.
    """
    folder = check_checkpoint(kind, source, offline=offline)
    logging.disable_progress_bar()
    try:
        model = load_component(getattr(transformers, kind.model), folder, dtype)
        image_processor, tokenizer = (
            name and getattr(transformers, name).from_pretrained(folder, local_files_only=True)
            for name in (kind.image_processor, kind.tokenizer)
        )
    except Exception as error:  # the libraries raise many types for a damaged folder
        line = to_one_line(error, 300)
        raise ModelError(f"model {source!r}: cannot be loaded ({line}); download it again") from error
    return Checkpoint(model.to(device), image_processor, tokenizer)


def check_checkpoint(kind: CheckpointKind, source: str, *, offline: bool) -> Path:
    """Return the checkpoint's folder without loading it.

    Raises ModelError if it is missing, of another kind, or has no safetensors weights.
    """
    folder = _find_folder(source, kind, offline)
    _check_files(folder, source, kind)
    return folder


def tokenize(checkpoint: Checkpoint, texts: Sequence[str], limit: int) -> Mapping[str, Tensor]:
    """Tokenize texts to ids (texts, limit) with an attention mask; raises SceneError for a text of more tokens."""
    for text in texts:
        count = len(checkpoint.tokenizer(text)["input_ids"])
        if count > limit:
            raise SceneError(f"phrase {text!r}: {count} tokens, the model reads at most {limit}; use a shorter phrase")
    tokens: Mapping[str, Tensor] = checkpoint.tokenizer(
        list(texts), padding="max_length", max_length=limit, return_tensors="pt"
    )
    return tokens


def to_numpy(values: Tensor) -> FloatArray:
    """Convert to a float32 array; raises ModelError for non-finite values, which half precision can produce."""
    if not values.isfinite().all():
        raise ModelError(f"a segmentation model returned non-finite values in {values.dtype}; use --dtype float32")
    array: FloatArray = values.float().cpu().numpy()
    return array


def _find_folder(source: str, kind: CheckpointKind, offline: bool) -> Path:
    """Return the folder, or that of a hub id in the Hugging Face cache; downloads it first unless offline."""
    folder = expand_user(source)
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise ModelError(f"model {source!r}: no such folder; give a folder or a hub id such as {kind.example}")
    return download_from_hub(source, COMPONENT_PATTERNS, offline=offline)


def _check_files(folder: Path, source: str, kind: CheckpointKind) -> None:
    expected = f"use a {kind.model_type} checkpoint such as {kind.example}"
    try:
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {source!r}: it has no config.json; {expected}")
        found = read_config(folder / "config.json").get("model_type")
    except ReadError:
        raise ModelError(f"model {source!r}: its config.json is damaged; download it again") from None
    if found != kind.model_type:
        raise ModelError(f"model {source!r}: its model_type is {found}, expected {kind.model_type}; {expected}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        only = f", only {', '.join(pickles)} (pickles are not read)" if pickles else ""
        raise ModelError(f"model {source!r}: it has no .safetensors weights{only}; {expected}")
