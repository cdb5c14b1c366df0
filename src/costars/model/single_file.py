"""The parts of a checkpoint in one .safetensors file, in the layout of the first SD and SDXL releases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from costars.errors import ModelError
from costars.files.safetensors_header import Entry
from costars.model.checkpoint_file import CheckpointFile
from costars.model.checkpoint_keys import UNET_PREFIX, is_unused, list_keys, part_prefixes
from costars.model.components import drop_missing_encoder
from costars.model.families import KNOWN_TITLES, SDXL, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE, Family, detect_family
from costars.model.file_kinds import check_model_kind, describe_other_file
from costars.model.quantized_weights import check_weight_types

CONFIGS = Path(__file__).parent / "configs"
_SMALLER_UNET = (
    "if it is a model with fewer layers (SSD-1B, Segmind-Vega, KOALA), give its diffusers folder, as model or as "
    "checkpoint.config"
)
FIRST_LAYER = UNET_PREFIX + "input_blocks.0.0.weight"
_CROSS_KEY = UNET_PREFIX + "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"


def read_family(entries: Mapping[str, Entry], what: str) -> Family:
    """The family of a single file, from its keys and sizes; raises ModelError if it is another kind, or incomplete."""
    cross = next((entries[k] for i in (1, 4) if (k := _CROSS_KEY.format(i)) in entries), None)
    if cross is None:
        raise ModelError(describe_other_file(entries, what))
    check_model_kind(entries, what)
    width = cross.shape[1]
    has_second = SDXL.text_encoders[1].single_file_key in entries or width == SDXL.text_width
    family = detect_family([TEXT_ENCODER_2] if has_second else [TEXT_ENCODER], width)
    prefixes = part_prefixes(family)
    if not any(key.startswith(p) for part, ps in prefixes.items() if part != UNET for p in ps for key in entries):
        raise ModelError(
            f"{what}: is a UNet of {family.title} alone; save it with its text encoders and VAE as one checkpoint "
            f"(ComfyUI: Save Checkpoint), or want a whole {KNOWN_TITLES} checkpoint"
        )
    for encoder in family.text_encoders:
        if not any(key.startswith(encoder.single_file_key) for key in entries):
            raise ModelError(f"{what}: a text encoder is missing in the file; use a whole checkpoint")
    if len(entries.get(FIRST_LAYER, cross).shape) != 4:
        raise ModelError(f"{what}: lacks the tensor {FIRST_LAYER!r} of its unet; use a whole checkpoint")
    return family


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """A part of a single file: its module without weights, and the keys in the file that it is made of.

    keys are all keys of the part, read those of them whose tensors the module takes.
    """

    module: Any
    file: CheckpointFile
    prefix: str
    keys: Sequence[str]
    read: frozenset[str]

    def load(self, dtype: torch.dtype) -> Any:
        """The module with its weights, in eval mode and without gradients."""
        renamed = _rename(self.module, self.file.read(self.keys_to_read, dtype), self.prefix)
        wanted = self.module.state_dict()
        weights = {name: value.to(dtype).contiguous() for name, value in renamed.items() if name in wanted}
        self.module.load_state_dict(weights, strict=True, assign=True)
        return self.module.eval().requires_grad_(False)

    @property
    def keys_to_read(self) -> list[str]:
        """In the file's order."""
        return [key for key in self.keys if key in self.read]


def map_part(file: CheckpointFile, part: str, kind: Any, config: Path, prefixes: Sequence[str]) -> FilePart:
    """Find the weights of a part in the file, from its keys and shapes alone.

    config is a configuration folder of a whole checkpoint. A VAE may come without its encoder. Raises ModelError for
    weights that are missing or of another shape.
    """
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in file.entries)), "")
    keys = [key for key in file.entries if key.startswith(prefix) and not _is_scale(file, key)]
    module = build_empty(kind, config / part)
    stand_ins = {key: _StandIn(key, torch.empty(file.entries[key].shape, device="meta")) for key in keys}
    try:
        renamed: dict[str, _StandIn] = _rename(module, stand_ins, prefix)
    except KeyError as error:
        raise ModelError(f"{file.what}: lacks the tensor {prefix + str(error.args[0])!r} of its {part}") from None
    if part == VAE:
        drop_missing_encoder(module, renamed)
    wanted = module.state_dict()
    _check_weights(file.what, part, renamed, {name: tuple(value.shape) for name, value in wanted.items()})
    read = frozenset(stand_in.key for name, stand_in in renamed.items() if name in wanted)
    return FilePart(module=module, file=file, prefix=prefix, keys=keys, read=read)


def check_all_read(
    file: CheckpointFile, parts: Iterable[FilePart], prefixes: Iterable[str], replaced: Sequence[str] = ()
) -> tuple[str, ...]:
    """Notes about tensors that no part reads. Raises ModelError if they are layers of a part.

    prefixes are the starts of the keys of the parts that are read, replaced of those that another file replaces.
    """
    read = frozenset[str]().union(*(part.read for part in parts))
    scales = {file.scales[key] for key in read if key in file.scales}
    known = [key for key in file.entries if key in read or key in scales or key.startswith(tuple(replaced))]
    unread = [key for key in sorted({*file.entries} - {*known}) if not is_unused(key)]
    layers = [key for key in unread if key.startswith(tuple(prefixes))]
    if layers:
        raise ModelError(
            f"{file.what}: has layers that its architecture does not have ({list_keys(layers)}), and without them its "
            "pictures are wrong; give the diffusers folder of this model, as model or as checkpoint.config"
        )
    return (f"{file.what}: {list_keys(unread)}: not part of the model, and not read",) if unread else ()


def check_weight_kinds(file: CheckpointFile, prefixes: Iterable[str]) -> None:
    """Raises ModelError for quantized weights that are not supported."""
    keys = (key for key in file.entries if key.startswith(tuple(prefixes)) and not is_unused(key))
    check_weight_types(file.entries, keys, file.what)


def _check_weights(what: str, part: str, found: Mapping[str, _StandIn], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError for weights that are missing or of another shape."""
    missing = [name for name in wanted if name not in found]
    if missing:
        is_smaller = part == UNET and any(".attentions." in name for name in missing)
        hint = _SMALLER_UNET if is_smaller else "use a whole checkpoint, or download it again"
        raise ModelError(f"{what}: its {part} lacks {len(missing)} weights, the first is {missing[0]}; {hint}")
    for name, shape in wanted.items():
        if found[name].shape != shape:
            hint = "a text encoder of longer prompts (LongCLIP) needs" if "position_embedding" in name else "give"
            raise ModelError(
                f"{what}: {found[name].key!r} has the shape {tuple(found[name].shape)}, but {name} of its {part} has "
                f"{shape}; {hint} its diffusers folder, as model or as checkpoint.config"
            )


@dataclass(frozen=True)
class _StandIn:
    """Stands for the tensor of a key while it is renamed, with the shape that results."""

    key: str
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def T(self) -> _StandIn:  # noqa: N802
        return _StandIn(self.key, self.value.T)

    def __getitem__(self, index: Any) -> _StandIn:
        return _StandIn(self.key, self.value[index])

    def clone(self) -> _StandIn:
        return self

    contiguous = detach = clone


def _rename(module: Any, tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Tensors of one part by the names of its module."""
    tensors = dict(tensors)
    if isinstance(module, UNet2DConditionModel):
        return convert_ldm_unet_checkpoint(tensors, module.config)
    if isinstance(module, AutoencoderKL):
        own = {key.removeprefix(prefix) for key in tensors}
        if own & {"decoder.mid_block.resnets.0.conv1.weight"}:
            return {key.removeprefix(prefix): value for key, value in tensors.items()}  # diffusers' own names
        return convert_ldm_vae_checkpoint(tensors, module.config)
    if f"{prefix}model.token_embedding.weight" in tensors:
        renamed = convert_open_clip_checkpoint(module, tensors, prefix=f"{prefix}model.")
    else:
        renamed = convert_ldm_clip_checkpoint(tensors)
    if hasattr(module, "text_model"):
        return dict(renamed)
    return {name.removeprefix("text_model."): value for name, value in renamed.items()}


def build_empty(kind: Any, config: Path) -> Any:
    """A module of this class without weights."""
    with init_empty_weights():
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(config, local_files_only=True))
        return kind(kind.config_class.from_pretrained(config, local_files_only=True))


def _is_scale(file: CheckpointFile, key: str) -> bool:
    return key in file.scales.values()
