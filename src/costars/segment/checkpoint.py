"""Checkpoints of transformers' vision models: a folder or a hub id, safetensors only, no code from outside."""

from __future__ import annotations

import json
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

from costars.errors import ModelError, SceneError
from costars.model.components import part_of
from costars.model.hub import PART, fetched, is_hub_id

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """What a checkpoint must hold: its model_type, and the names of transformers' classes that read it.

    images is a `...Pil` class, the others need torchvision; example is the hub id that errors name.
    """

    model_type: str
    model: str
    images: str
    tokenizer: str | None
    example: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, what makes its pixels, and its tokenizer (None where it reads no text)."""

    model: Any
    images: Any
    tokenizer: Any

    def run(self, **inputs: Any) -> Any:
        """The model's output; tensors are moved to its device, floating ones to its dtype."""
        device, dtype = self.model.device, self.model.dtype
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        return self.model(**moved)


def open_checkpoint(kind: Kind, where: str, device: torch.device, dtype: torch.dtype, *, offline: bool) -> Checkpoint:
    """The model of a folder or a hub id (org/name or org/name@revision), in eval mode.

    Raises ModelError if it is not there, is of another kind, has no safetensors weights or is not whole.
    """
    folder = check_checkpoint(kind, where, offline=offline)
    logging.disable_progress_bar()
    try:
        model = part_of(getattr(transformers, kind.model), folder, dtype)
        images, tokenizer = (
            name and getattr(transformers, name).from_pretrained(folder, local_files_only=True)
            for name in (kind.images, kind.tokenizer)
        )
    except Exception as error:  # whatever the libraries raise over a damaged folder, and they raise many kinds
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"model {where!r}: cannot be loaded ({line}); fetch it again") from error
    return Checkpoint(model.to(device), images, tokenizer)


def check_checkpoint(kind: Kind, where: str, *, offline: bool) -> Path:
    """The checkpoint's folder, nothing loaded yet; raises ModelError as open_checkpoint, for what can be seen so."""
    folder = _folder(where, kind, offline)
    _check(folder, where, kind)
    return folder


def tokenize(checkpoint: Checkpoint, texts: Sequence[str], limit: int) -> Mapping[str, Tensor]:
    """Token ids (texts, limit) and their attention mask; raises SceneError for a text of more tokens."""
    for text in texts:
        count = len(checkpoint.tokenizer(text)["input_ids"])
        if count > limit:
            raise SceneError(f"phrase {text!r}: {count} tokens, the model reads at most {limit}; write a shorter one")
    tokens: Mapping[str, Tensor] = checkpoint.tokenizer(
        list(texts), padding="max_length", max_length=limit, return_tensors="pt"
    )
    return tokens


def numbers(values: Tensor) -> Numbers:
    """The same on the CPU; raises ModelError if one is not finite, as half precision may leave it."""
    if not values.isfinite().all():
        raise ModelError(f"a segmenting model gave numbers that are not finite in {values.dtype}; use float32")
    plain: Numbers = values.float().cpu().numpy()
    return plain


def _folder(where: str, kind: Kind, offline: bool) -> Path:
    """The folder itself, or the hub id's in the Hugging Face cache, which is filled first unless offline."""
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(where):
        raise ModelError(f"model {where!r}: no such folder; give one, or a hub id such as {kind.example}")
    return fetched(where, PART, offline=offline)


def _check(folder: Path, where: str, kind: Kind) -> None:
    want = f"a {kind.model_type} checkpoint such as {kind.example}"
    try:
        found = dict(json.loads((folder / "config.json").read_text())).get("model_type")
    except OSError:
        raise ModelError(f"model {where!r}: no config.json there; give {want}") from None
    except (ValueError, TypeError):
        raise ModelError(f"model {where!r}: its config.json is damaged; fetch it again") from None
    if found != kind.model_type:
        raise ModelError(f"model {where!r}: its model_type is {found}, want {kind.model_type}; give {want}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        other = f", only {', '.join(pickles)}, and pickles are not read" if pickles else ""
        raise ModelError(f"model {where!r}: no .safetensors weights there{other}; give {want}")
