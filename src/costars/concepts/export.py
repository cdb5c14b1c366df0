"""Exports concepts to the formats of other programs: kohya's and diffusers'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costars.concepts.dialects import PARTS
from costars.concepts.keys import module_path
from costars.concepts.saving import to_smallest_dtype
from costars.errors import ConceptError, nearest
from costars.files.atomic import TensorFile, write_safetensors
from costars.model.families import SD2, SD15, SDXL
from costars.types import Concept, LowRank

Files = dict[str, TensorFile]  # by name, without .safetensors

# File names that diffusers looks for in a folder.
LORA = "pytorch_lora_weights"
CUSTOM_DIFFUSION = "pytorch_custom_diffusion_weights"
EMBEDDING = "learned_embeds"

_CROSS_ATTENTION = re.compile(r"unet\.(.*)\.attn2\.to_([kv])")
_KOHYA_PREFIXES: Mapping[str, Mapping[str, str]] = {
    SD15.name: {"unet": "lora_unet", "text_encoder": "lora_te"},
    SD2.name: {"unet": "lora_unet", "text_encoder": "lora_te"},
    SDXL.name: {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
# As sd-scripts writes it. ModelSpec names SD 2 of 512 px and of 768 px differently, and a concept does not know which.
_KOHYA_METADATA: Mapping[str, Mapping[str, str]] = {
    SD15.name: {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"},
    SD2.name: {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    SDXL.name: {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
}


def export_concept(
    concept: Concept, card: Mapping[str, Any], format_name: str, target: Path, overwrite: bool = False
) -> list[Path]:
    """Write a concept with its card in a format of FORMATS and return the paths of the files.

    A LoRA without embeddings is the file `target`, which must end with .safetensors; all else is a folder.
    Raises ConceptError if the format cannot hold the concept, or `target` exists and `overwrite` is false.
    """
    if format_name not in FORMATS:
        raise ConceptError(f"--format {format_name[:40]!r}: unknown format; {nearest(format_name, FORMATS)}")
    files = FORMATS[format_name](concept)
    facts = {key: getattr(concept, key) for key in ("name", "class_name", "trigger", "family", "licence")}
    metadata = {"format": "pt", "costars": json.dumps({**card, **facts, "per_layer": False})}
    complete = {
        f"{name}.safetensors": TensorFile(
            {key: to_smallest_dtype(tensor) for key, tensor in file.tensors.items()}, {**metadata, **file.metadata}
        )
        for name, file in files.items()
    }
    return write_safetensors(complete, target, set(files) != {LORA}, overwrite)


def to_kohya(concept: Concept) -> Files:
    """Convert a LoRA to the format of kohya's sd-scripts with scale 1. Raises ConceptError for anything else.

    If layers have different ranks, no alpha is written; readers then take the rank. diffusers 0.42 loses the alphas
    of attention layers if they differ.
    """
    _check_exportable(concept)
    if not concept.family:
        raise ConceptError(
            f"{concept.source}: unknown base model, which the kohya format requires; use --format diffusers"
        )
    if concept.tokens or concept.weights:
        what = "embeddings" if concept.tokens else "full weights"
        raise ConceptError(f"{concept.source}: has {what}, which the kohya format cannot hold; use --format diffusers")
    tensors, has_uniform_rank = dict[str, Tensor](), bool(_ranks_by_part(concept))
    for path, entry in _low_ranks(concept).items():
        stem = _kohya_stem(path, concept)
        tensors |= {f"{stem}.lora_down.weight": entry.down, f"{stem}.lora_up.weight": entry.up}
        if has_uniform_rank:
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(entry.down)))
    ranks = {str(len(entry.down)) for entry in _low_ranks(concept).values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # as in networks/resize_lora.py
    fields = {"title": concept.name, "trigger_phrase": concept.trigger, "license": concept.licence}
    metadata = {
        **_KOHYA_METADATA[concept.family],
        **{"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank},
        **{f"modelspec.{key}": value for key, value in fields.items() if value},
    }
    return {LORA: TensorFile(tensors, metadata)}


def to_diffusers(concept: Concept) -> Files:
    """Convert a LoRA, textual inversion, Custom Diffusion, or a combination to the files of diffusers' scripts.

    Raises ConceptError for per-layer embeddings and for full weights of other layers.
    """
    _check_exportable(concept)
    files: Files = {}
    if concept.adapter:
        tensors = {f"{path}.lora_A.weight": entry.down for path, entry in _low_ranks(concept).items()}
        tensors |= {f"{path}.lora_B.weight": entry.up for path, entry in _low_ranks(concept).items()}
        files[LORA] = TensorFile(tensors, _lora_metadata(concept))
    if concept.weights:
        files[CUSTOM_DIFFUSION] = TensorFile(_custom_diffusion_tensors(concept), {})
    use_token_names = bool(concept.weights) or len(concept.tokens) > 1  # diffusers reads one token per file
    for token, parts in concept.tokens.items():
        for part, vectors in parts.items():
            name = (token if use_token_names else EMBEDDING) + ("_2" if part == "text_encoder_2" else "")
            if name in files or name.startswith(".") or set(name) & set("/\\"):
                raise ConceptError(
                    f"{concept.source}: token {token!r} cannot be a file name; import it with another --trigger"
                )
            files[name] = TensorFile({token: vectors}, {})
    return files


# --format -> function that converts a concept to files, or raises ConceptError.
FORMATS: Mapping[str, Callable[[Concept], Files]] = {"kohya": to_kohya, "diffusers": to_diffusers}


def _check_exportable(concept: Concept) -> None:
    """Raise ConceptError for what neither format can hold."""
    remedy = "which neither the kohya nor the diffusers format can hold; use the file written by costars"
    if not (concept.adapter or concept.tokens or concept.weights):
        raise ConceptError(f"{concept.source}: has no layers and no embeddings; train or import it again")
    whole = next((path for path, entry in concept.adapter.items() if not isinstance(entry, LowRank)), None)
    if whole is not None:
        raise ConceptError(f"{concept.source}: has a whole change of {whole!r} ({concept.format}), {remedy}")
    if concept.per_layer and concept.tokens:
        raise ConceptError(f"{concept.source}: has per-layer embeddings (ED-LoRA), {remedy}")
    for path, weight in concept.weights.items():
        if weight.ndim != 2 or _CROSS_ATTENTION.fullmatch(path) is None or _other_of_pair(path) not in concept.weights:
            raise ConceptError(
                f"{concept.source}: has the full weight of {path!r}, not a pair of cross-attention keys and values, "
                f"{remedy}"
            )


def _low_ranks(concept: Concept) -> dict[str, LowRank]:
    """The layers of a concept that can be exported."""
    return {path: entry for path, entry in concept.adapter.items() if isinstance(entry, LowRank)}


def _other_of_pair(path: str) -> str:
    """Path of the values for a path of keys, and the reverse."""
    return path[:-1] + ("v" if path.endswith("k") else "k")


def _kohya_stem(path: str, concept: Concept) -> str:
    part, _, name = path.partition(".")
    stem = f"{_KOHYA_PREFIXES[concept.family].get(part, part)}_{name.replace('.', '_')}"
    if module_path(stem) != path:
        raise ConceptError(f"{concept.source}: layer {path!r} has no name in kohya's format; use --format diffusers")
    return stem


def _lora_metadata(concept: Concept) -> dict[str, str]:
    """peft options of each part if it has a uniform rank; otherwise diffusers infers them from the tensors."""
    options: dict[str, object] = {}
    for part, rank in _ranks_by_part(concept).items():
        # Without text_model: transformers 5 removed this level from one encoder, and peft matches endings of names.
        layers = [p.removeprefix(part).removeprefix("text_model.") for p in concept.adapter if p.startswith(part)]
        options |= {f"{part}r": rank, f"{part}lora_alpha": rank, f"{part}target_modules": layers}
    return {"lora_adapter_metadata": json.dumps(options)} if options else {}


def _ranks_by_part(concept: Concept) -> dict[str, int]:
    """Rank of each part; {} if a part has layers of several ranks."""
    pairs = {(part, len(e.down)) for path, e in _low_ranks(concept).items() for part in PARTS if path.startswith(part)}
    ranks = dict(sorted(pairs))
    return ranks if len(ranks) == len(pairs) else {}


def _custom_diffusion_tensors(concept: Concept) -> dict[str, Tensor]:
    """The weights, with an empty tensor per self-attention: diffusers requires a key for every attention processor."""
    tensors: dict[str, Tensor] = {}
    for path, weight in concept.weights.items():
        match = _CROSS_ATTENTION.fullmatch(path)
        assert match is not None
        tensors[f"{match[1]}.attn2.processor.to_{match[2]}_custom_diffusion.weight"] = weight
        tensors[f"{match[1]}.attn1.processor"] = torch.zeros(0)
    return tensors
