"""Load a checkpoint, a diffusers folder or a single file, as a Model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import schedulers as diffusers_schedulers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from costars.errors import ConceptError, ModelError, ran_out_of_memory, to_one_line
from costars.files.safetensors_header import compute_sha256
from costars.model.checkpoint_file import open_checkpoint_file
from costars.model.checkpoint_keys import VAE_PREFIXES
from costars.model.checkpoint_parts import CheckpointParts, open_folder, open_single_file
from costars.model.components import load_component
from costars.model.config_rules import check_vae_config
from costars.model.config_values import check_files, check_types, check_values, read_config
from costars.model.families import UNET, VAE, Family
from costars.model.file_kinds import check_channels
from costars.model.hub import Source
from costars.model.model import Model, ModelInfo
from costars.model.model_index import reads_force_zeros
from costars.model.offload import Offload, choose_tier, count_weight_bytes
from costars.model.single_file import CONFIGS, check_all_read, check_weight_kinds, map_part
from costars.model.text_encoder import TextEncoder, TextEncoders


def load_model(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    max_rows: int = 0,
    segmenter: str = "attention",
    memory: str = "full",
) -> Model:
    """Load a checkpoint; raises ModelError if it is incomplete, damaged or of an unknown family.

    memory is a tier of `offload.TIERS`, or auto for the first that fits the device.
    """
    _silence_libraries()
    what, in_one_file = f"model {source.name!r}", source.path.is_file()
    if source.config is not None and not in_one_file:
        raise ModelError(f"{what}: is a folder with its own configuration; leave checkpoint.config out")
    remedy = "download it again" if source.config is None else "download it again, or give another checkpoint.config"
    with _one_line_errors(what, remedy):
        for folder in (source.path, source.vae, source.config):
            check_files(folder)
        parts = open_single_file(source, dtype) if in_one_file else open_folder(source, dtype)
        unet, vae = parts.load_module(UNET), _load_vae(source, parts, dtype)
        check_channels(int(unet.config["in_channels"]), int(vae.config["latent_channels"]), what)
        encoders = _load_text_encoders(parts)
        scheduler = _make_scheduler(parts.scheduler)
        check_values(unet, vae, encoders, scheduler)
        info = _describe(source, parts, unet, vae, segmenter)
    if dtype == torch.float16 and vae.config["force_upcast"]:
        vae = vae.to(torch.float32)  # SDXL's VAE overflows in float16; its configuration states this
    if source.tiles:
        vae.enable_tiling()
    modules = (unet, vae, *(e.module for e in encoders))
    offload = Offload(choose_tier(memory, count_weight_bytes(*modules), device), device)
    for module in modules:
        offload.place(module)
    return Model(
        unet=unet,
        vae=vae,
        encoders=encoders,
        scheduler=scheduler,
        info=info,
        device=device,
        dtype=dtype,
        max_rows=max_rows,
        offload=offload,
    )


@contextmanager
def _one_line_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn any exception that the libraries raise for damaged files in the block into a ModelError of one line.

    Where memory runs out, a MemoryError is raised instead: the files are whole.
    """
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # tokenizers is written in Rust: a damaged file may make it panic, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = to_one_line(error, 300).removesuffix("; fetch it again").removesuffix("; download it again")
        if ran_out_of_memory(error):
            raise MemoryError(f"{what}: out of memory while it is loaded ({line})") from error
        raise ModelError(f"{what}: cannot be loaded ({line}); {remedy}") from error


def _silence_libraries() -> None:
    """Hide warnings about configurations, dtypes and long prompts that costars handles itself; errors are shown."""
    transformers_logging.disable_progress_bar()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()


def _load_text_encoders(parts: CheckpointParts) -> TextEncoders:
    return tuple(
        TextEncoder(spec, parts.load_tokenizer(spec.tokenizer), parts.load_module(spec.name))
        for spec in parts.family.text_encoders
    )


def _load_vae(source: Source, parts: CheckpointParts, dtype: torch.dtype) -> AutoencoderKL:
    """The checkpoint's VAE, or the one that replaces it, with the scaling of latents that the checkpoint states."""
    vae = parts.load_module(VAE) if source.vae is None else _load_other_vae(source.vae, source, parts, dtype)
    if vae.config["latents_mean"] is None:
        vae.register_to_config(**parts.vae)
    return vae


def _load_other_vae(place: Path, source: Source, parts: CheckpointParts, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE from a diffusers folder or a single file."""
    path, what = _find_vae(place), f"checkpoint.vae {str(place)!r}"
    with _one_line_errors(what, "want the folder of a diffusers VAE, or its .safetensors file"):
        if path.is_dir():
            if (path / "config.json").is_file():
                check_vae_config(read_config(path / "config.json"), what)
            return load_component(AutoencoderKL, path, dtype)
        file = open_checkpoint_file(path, what, ConceptError)  # without ModelError, so that the error names the field
        part = map_part(file, VAE, AutoencoderKL, source.config or CONFIGS / parts.family.name, VAE_PREFIXES)
        check_weight_kinds(file, [part.prefix])
        check_all_read(file, [part], [part.prefix])
        return part.load(dtype)


def _find_vae(path: Path) -> Path:
    """The VAE's folder, if the folder of a whole checkpoint is given."""
    return path / VAE if (path / VAE).is_dir() else path


def _make_scheduler(config: Mapping[str, Any]) -> Any:
    kind = getattr(diffusers_schedulers, config["_class_name"])
    check_types("scheduler", kind, config)
    return kind.from_config(dict(config))


def _describe(
    source: Source, parts: CheckpointParts, unet: UNet2DConditionModel, vae: AutoencoderKL, segmenter: str
) -> ModelInfo:
    cell_px = 2 ** (len(vae.config["block_out_channels"]) - 1)
    side = int(unet.config["sample_size"]) * cell_px
    size_px, size_notes = _choose_size((side, side), parts, cell_px, f"model {source.name!r}")
    return ModelInfo(
        name=source.name,
        family=parts.family.name,
        sha256=parts.hash_unet(),
        size_px=size_px,
        cell_px=cell_px,
        latent_channels=int(unet.config["in_channels"]),
        segmenter=segmenter,
        parts_sha256=_hash_other_parts(source, parts.family),
        force_zeros=reads_force_zeros(source.config if source.path.is_file() else source.path, parts.family),
        notes=(*parts.notes, *size_notes),
    )


def _choose_size(
    own: tuple[int, int], parts: CheckpointParts, cell_px: int, what: str
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(default (width, height) in px, notes): the file's in a family whose releases differ, else the UNet's own."""
    stated = parts.resolution
    if stated is None or stated == own or any(px % cell_px for px in stated):
        return own, ()
    if parts.family.prediction is None:
        return stated, ()
    width, height = stated
    return own, (f"{what}: its file states {width} x {height} px, {own[0]} x {own[1]} is the default; set size for it",)


def _hash_other_parts(source: Source, family: Family) -> dict[str, str]:
    """Hashes of weight files that the UNet's hash does not cover: a folder's other parts, and a replaced VAE."""
    parts = () if source.path.is_file() else (*(e.name for e in family.text_encoders), VAE)
    paths = {f"model.{part}": source.path / part for part in parts}
    if source.vae is not None:
        paths.pop("model.vae", None)
        paths["checkpoint.vae"] = _find_vae(source.vae)
    return {place: compute_sha256(path) for place, path in paths.items()}
