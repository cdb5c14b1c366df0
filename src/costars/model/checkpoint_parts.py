"""Open a checkpoint, a diffusers folder or a single file, check what it is, and find its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from costars.errors import ModelError, ReadError
from costars.files.regular_file import is_there
from costars.files.safetensors_header import compute_sha256
from costars.model.checkpoint_file import CheckpointFile, open_checkpoint_file
from costars.model.checkpoint_keys import VAE_PREFIXES, part_prefixes
from costars.model.checkpoint_statements import StatedFile, Statements, read_statements
from costars.model.clip_tokenizer import load_tokenizer
from costars.model.components import find_weights_problem, load_component
from costars.model.config_rules import check_configs
from costars.model.config_values import read_config
from costars.model.families import SCHEDULER, TEXT_ENCODER_2, UNET, VAE, Family, detect_family
from costars.model.file_kinds import check_channels, check_model_index
from costars.model.hub import Source
from costars.model.single_file import CONFIGS, FIRST_LAYER, check_all_read, check_weight_kinds, map_part, read_family

UNKNOWN_PREDICTION = (
    "model {!r}: a single file of SD 2 does not state its prediction type; epsilon is assumed (the 512 px release). "
    "If pictures are noise (768 px release), set checkpoint.prediction: v_prediction and size: [768, 768]"
)


@dataclass(frozen=True, kw_only=True)
class CheckpointParts:
    """How to read the parts of one checkpoint.

    scheduler is its scheduler's configuration, vae are settings of its VAE that replace those of the configuration, and
    resolution is the (width, height) in px that the file states.
    """

    family: Family
    load_module: Callable[[str], Any]
    load_tokenizer: Callable[[str], CLIPTokenizer]
    scheduler: Mapping[str, Any]
    hash_unet: Callable[[], str]
    vae: Mapping[str, Any] = field(default_factory=dict)
    resolution: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def part_classes(family: Family) -> dict[str, Any]:
    """{part with weights: its class}."""
    encoders = {e.name: getattr(transformers, e.model_class) for e in family.text_encoders}
    return {UNET: UNet2DConditionModel, VAE: AutoencoderKL, **encoders}


def open_folder(source: Source, dtype: torch.dtype) -> CheckpointParts:
    """Open a diffusers folder; raises ModelError if a part is missing or its configuration is not supported."""
    folder, what = source.path, f"model {source.name!r}"
    family, notes = _check_folder(folder, what)
    classes = part_classes(family)
    read = [part for part in classes if not (part == VAE and source.vae)]
    for part in read:
        if problem := find_weights_problem(folder / part):
            raise ModelError(f"{what}: its {part} {problem}; use a release with .safetensors, or download it again")
    configs = read_configs(folder, read, what, "download it again")
    scheduler, replaced = _choose_prediction(configs[SCHEDULER], source.prediction, what)
    scheduler, corrected = _correct_scheduler(scheduler, family, what)
    unknown = check_configs({**configs, SCHEDULER: scheduler}, family, what)
    return CheckpointParts(
        family=family,
        load_module=lambda part: load_component(classes[part], folder / part, dtype),
        load_tokenizer=lambda part: CLIPTokenizer.from_pretrained(folder / part, local_files_only=True),
        scheduler=scheduler,
        hash_unet=lambda: compute_sha256(folder / UNET),
        notes=(*notes, *replaced, *corrected, *unknown),
    )


def open_single_file(source: Source, dtype: torch.dtype) -> CheckpointParts:
    """Open a single file; raises ModelError if it is not a whole checkpoint of a supported family in .safetensors."""
    what = f"model {source.name!r}"
    suffix = source.path.suffix.lower()
    if suffix != ".safetensors":
        why = "is quantized" if suffix == ".gguf" else "can hold code"
        raise ModelError(
            f"{what}: a single file must be .safetensors, {suffix or 'this'} {why}; convert it, or use another release"
        )
    file = open_checkpoint_file(source.path, what)
    family = read_family(file.entries, what)
    prefixes = part_prefixes(family)
    if source.vae is not None:
        del prefixes[VAE]
    elif not any(key.startswith(prefixes[VAE]) for key in file.entries):
        raise ModelError(f"{what}: the file has no VAE; set checkpoint.vae to one of its family")
    config = source.config or CONFIGS / family.name
    place = what if source.config is None else f"checkpoint.config {str(config)!r}"
    advice = "give the .json files of a whole diffusers folder, or leave checkpoint.config out"
    configs = read_configs(config, list(prefixes), place, advice)
    own = [start for starts in prefixes.values() for start in starts]
    check_weight_kinds(file, own)
    check_channels(file.entries[FIRST_LAYER].shape[1], configs[UNET].get("in_channels", 4), what)
    statements = _read_statements(file, family, source, configs[SCHEDULER])
    scheduler, corrected = _correct_scheduler(_state(configs[SCHEDULER], statements), family, what)
    vae = {VAE: {**configs[VAE], **statements.vae}} if VAE in prefixes else {}
    unknown = check_configs({**configs, **vae, SCHEDULER: scheduler}, family, place)
    classes = part_classes(family)
    parts = {part: map_part(file, part, classes[part], config, starts) for part, starts in prefixes.items()}
    unread = check_all_read(file, parts.values(), own, VAE_PREFIXES if source.vae else ())
    is_unknown = family.prediction is None and not ("prediction_type" in statements.scheduler or source.config)
    overruled = _describe_overruled(configs[SCHEDULER], statements, place) if source.config else ()
    notes = (*statements.notes, *overruled, *corrected, *unknown, *unread)
    return CheckpointParts(
        family=family,
        load_module=lambda part: parts[part].load(dtype),
        load_tokenizer=lambda part: load_tokenizer(config / part),
        scheduler=scheduler,
        hash_unet=lambda: compute_sha256(source.path),
        vae=statements.vae,
        resolution=statements.resolution,
        notes=(*notes, UNKNOWN_PREDICTION.format(source.name)) if is_unknown else notes,
    )


def read_configs(folder: Path, parts: Sequence[str], what: str, advice: str) -> dict[str, dict[str, Any]]:
    """{part: its configuration} of these parts and of the scheduler.

    Raises ModelError, which begins with what and ends with advice, for a file that is missing or not a JSON object.
    """
    configs = {}
    for part in (*parts, SCHEDULER):
        file = f"{part}/{'scheduler_config' if part == SCHEDULER else 'config'}.json"
        try:
            configs[part] = read_config(folder / file)
        except ReadError:
            problem = "cannot be read" if is_there(folder / file) else "is missing"
            raise ModelError(f"{what}: {file} {problem}; {advice}") from None
    return configs


def _read_statements(file: CheckpointFile, family: Family, source: Source, scheduler: Mapping[str, Any]) -> Statements:
    return read_statements(
        StatedFile(
            what=file.what,
            family=family,
            keys=frozenset(file.entries),
            metadata=file.metadata,
            read=file.read_one,
            chosen=source.prediction,
            scheduler=scheduler,
        )
    )


def _state(config: Mapping[str, Any], statements: Statements) -> dict[str, Any]:
    """A scheduler's configuration with what the file states."""
    return {**({} if statements.replaces else config), **statements.scheduler}


def _describe_overruled(config: Mapping[str, Any], statements: Statements, place: str) -> tuple[str, ...]:
    """A note where the user's configuration has another prediction than the file."""
    used = statements.scheduler.get("prediction_type")
    if used is None or config.get("prediction_type", used) == used:
        return ()
    return (f"{place}: states the prediction {config['prediction_type']}, but {used} is used as the file states",)


def _choose_prediction(
    config: Mapping[str, Any], chosen: str | None, what: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(a scheduler's configuration with the user's prediction, notes)."""
    if chosen is None:
        return dict(config), ()
    stated = config.get("prediction_type", chosen)
    note = f"{what}: checkpoint.prediction {chosen} is used, although its scheduler states {stated}"
    return {**config, "prediction_type": chosen}, () if stated == chosen else (note,)


def _correct_scheduler(config: Mapping[str, Any], family: Family, what: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(configuration, notes), with the two settings that diffusers' StableDiffusionPipeline corrects in old files."""
    if any(encoder.pooled for encoder in family.text_encoders):
        return dict(config), ()  # its SDXL pipeline corrects nothing
    corrected, notes = dict(config), []
    for key, value, reason in (
        ("clip_sample", False, "latents are not limited to [-1, 1]"),
        ("steps_offset", 1, "as Stable Diffusion's own sampler"),
    ):
        if key in config and config[key] != value:
            notes.append(f"{what}: {key} {config[key]!r} of its scheduler is taken as {value!r} ({reason})")
        corrected[key] = value
    return corrected, tuple(notes)


def _check_folder(folder: Path, what: str) -> tuple[Family, tuple[str, ...]]:
    """(family of a complete folder, notes); raises ModelError if it is another kind, or a part is missing."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{what}: no model_index.json there; want 'builtin', a diffusers folder, a .safetensors file or a hub id"
        )
    try:
        listed = read_config(index)
    except ReadError:
        raise ModelError(f"{what}: its model_index.json is damaged; download it again") from None
    present = {part for part, classes in listed.items() if isinstance(classes, list) and all(classes)}
    notes = check_model_index(listed, present, what)
    family = detect_family(present, None if TEXT_ENCODER_2 in present else _read_text_width(folder))
    missing = [part for part in family.folders if part not in present or not (folder / part).is_dir()]
    if missing:
        raise ModelError(
            f"{what}: a folder of {family.title} has {', '.join(family.folders)}, "
            f"but {', '.join(missing)} is missing; use a whole checkpoint, or download it again"
        )
    return family, notes


def _read_text_width(folder: Path) -> int | None:
    config = folder / UNET / "config.json"
    width = read_config(config).get("cross_attention_dim") if is_there(config) else None
    return width if isinstance(width, int) else None
