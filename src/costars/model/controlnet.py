"""ControlNets: a pose, edge or depth picture that guides some rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image
from torch import Tensor

from costars.errors import ModelError, ReadError, SceneError, to_one_line
from costars.files.pictures import load_picture
from costars.files.regular_file import expand_user
from costars.images.masks import same_aspect_ratio
from costars.model.components import load_component
from costars.model.model import Model
from costars.model.predict import Conditioning
from costars.types import ControlNet


def load_controlnet(folder: Path, name: str, model: Model) -> ControlNetModel:
    """A ControlNet in the model's memory tier; raises ModelError if the folder has none."""
    try:
        net: ControlNetModel = load_component(ControlNetModel, folder, model.dtype)
    except Exception as error:  # diffusers raises many kinds for other folders
        line = to_one_line(error)
        raise ModelError(
            f"controls.model {name!r}: no ControlNet with .safetensors weights ({line}); "
            "want a diffusers folder or hub id"
        ) from None
    model.offload.place(net)
    return net


def check_controlnet(net: ControlNetModel, name: str, model: Model) -> None:
    """Raises ModelError for a ControlNet of another family than the model."""
    theirs, ours = (part.config["cross_attention_dim"] for part in (net, model.unet))
    if theirs != ours:
        raise ModelError(
            f"controls.model {name!r}: reads text of width {theirs}, but the model {model.info.name!r} "
            f"({model.info.family}) of {ours}; use a ControlNet of the model's family"
        )


def load_control_image(name: str, size_px: tuple[int, int], model: Model) -> Tensor:
    """(1, 3, h px, w px) in [0, 1], resized to the size of the picture. Raises SceneError if it cannot be read."""
    try:
        image = load_picture(expand_user(name))
    except ReadError as error:
        raise SceneError(f"controls.image {name!r}: cannot be read ({error.reason}); {error.remedy}") from None
    if not same_aspect_ratio(image.size, size_px):
        raise SceneError(
            f"controls.image {name!r}: is {image.width} x {image.height} px, but the picture is {size_px[0]} x "
            f"{size_px[1]} px; give one of the same aspect ratio"
        )
    resized = image.convert("RGB").resize(size_px, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float().div(255)
    return pixels.to(model.device, model.dtype)


def control_residuals(
    controls: Sequence[ControlNet],
    sample: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    guided: Sequence[bool],
    progress: float,
) -> dict[str, Any]:
    """{argument of the UNet: residuals that the controls add}, zero in rows that are not guided.

    sample is (r, c, h, w), the conditioning's tokens (r, t, d), progress the share of steps done in [0, 1].
    Empty if no control is active.
    """
    active = [c for c in controls if c.start <= progress < c.end]
    if not active:
        return {}
    residuals: list[Tensor] = []
    for length, indices in _group_by_length(guided, conditioning).items():
        rows = torch.tensor(indices, device=sample.device)
        own = conditioning.rows(rows)
        tokens = own.tokens[:, :length]  # a ControlNet takes no mask for padded text
        found = _add_controls(active, sample[rows], t, replace(own, tokens=tokens))
        scattered = [_scatter_rows(value, rows, len(sample)) for value in found]
        residuals = [a + b for a, b in zip(residuals, scattered, strict=True)] if residuals else scattered
    if not residuals:
        return {}
    *down, middle = residuals
    return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}


def _group_by_length(guided: Sequence[bool], conditioning: Conditioning) -> dict[int, list[int]]:
    """{number of tokens: the guided rows with a text of this length}."""
    groups: dict[int, list[int]] = {}
    for i, is_guided in enumerate(guided):
        if is_guided:
            length = conditioning.lengths[i] if conditioning.lengths else conditioning.tokens.shape[1]
            groups.setdefault(length, []).append(i)
    return groups


def _add_controls(active: Sequence[ControlNet], sample: Tensor, t: Tensor, own: Conditioning) -> list[Tensor]:
    """The sum of the residuals of all controls."""
    residuals: list[Tensor] = []
    for control in active:
        images = control.image.expand(len(sample), -1, -1, -1)
        down, middle = control.net(
            sample, t, own.tokens, images, control.scale, added_cond_kwargs=own.added, return_dict=False
        )
        found = [*down, middle]
        residuals = [a + b for a, b in zip(residuals, found, strict=True)] if residuals else found
    return residuals


def _scatter_rows(value: Tensor, rows: Tensor, count: int) -> Tensor:
    """(len(rows), ...) to (count, ...), zero in the other rows."""
    if len(rows) == count:
        return value
    return value.new_zeros(count, *value.shape[1:]).index_copy(0, rows, value)
