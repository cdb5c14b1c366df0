"""Concepts in the formats that other programs read: kohya's, and diffusers'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costars.concepts.keys import PARTS, module_path
from costars.concepts.saving import smallest
from costars.errors import ConceptError, nearest
from costars.files.atomic import File, place
from costars.model.families import SD2, SD15, SDXL
from costars.types import Concept

Files = dict[str, File]  # by name, without .safetensors

# The names by which diffusers looks for them in a folder.
LORA = "pytorch_lora_weights"
CUSTOM_DIFFUSION = "pytorch_custom_diffusion_weights"
WORD = "learned_embeds"

_CROSS = re.compile(r"unet\.(.*)\.attn2\.to_([kv])")
_KOHYA_PARTS: Mapping[str, Mapping[str, str]] = {
    SD15.name: {"unet": "lora_unet", "text_encoder": "lora_te"},
    SD2.name: {"unet": "lora_unet", "text_encoder": "lora_te"},
    SDXL.name: {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
# As sd-scripts writes them; ModelSpec has one name for SD 2 of 512 px and one for 768, and neither is known here.
_KOHYA_FAMILY: Mapping[str, Mapping[str, str]] = {
    SD15.name: {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"},
    SD2.name: {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    SDXL.name: {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
}


def export_concept(
    concept: Concept, card: Mapping[str, Any], form: str, target: Path, replaced: bool = False
) -> list[Path]:
    """Write a concept in a format of FORMATS, with its card, and return the paths of what was written.

    A LoRA alone becomes the file target, which ends with .safetensors; all else a folder of that name.
    Raises ConceptError for what the format cannot hold, and for a target that is there unless it is to be replaced.
    """
    if form not in FORMATS:
        raise ConceptError(f"--format {form[:40]!r}: no such format; {nearest(form, FORMATS)}")
    files = FORMATS[form](concept)
    said = {key: getattr(concept, key) for key in ("name", "class_name", "trigger", "family", "licence")}
    always = {"format": "pt", "costars": json.dumps({**card, **said, "per_layer": False})}
    whole = {
        f"{name}.safetensors": File({k: smallest(t) for k, t in file.tensors.items()}, {**always, **file.metadata})
        for name, file in files.items()
    }
    return place(whole, target, set(files) != {LORA}, replaced)


def kohya(concept: Concept) -> Files:
    """A LoRA as kohya's sd-scripts write it, its scale 1; raises ConceptError for anything else.

    Where layers are of several ranks none has an alpha, which all readers take for its rank: diffusers 0.42
    loses the alphas of attention layers where they differ.
    """
    _check_known(concept)
    if not concept.family:
        raise ConceptError(
            f"{concept.source}: does not say which base model it is for, as kohya's files must; use --format diffusers"
        )
    if concept.tokens or concept.weights:
        what = "learned words" if concept.tokens else "whole weights"
        raise ConceptError(f"{concept.source}: has {what}, which a LoRA of kohya's cannot hold; use --format diffusers")
    tensors, one_rank = dict[str, Tensor](), bool(_ranks(concept))
    for path, entry in concept.adapter.items():
        stem = _kohya_stem(path, concept)
        tensors |= {f"{stem}.lora_down.weight": entry.down, f"{stem}.lora_up.weight": entry.up}
        if one_rank:
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(entry.down)))
    ranks = {str(len(entry.down)) for entry in concept.adapter.values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # as networks/resize_lora.py says it
    said = {"title": concept.name, "trigger_phrase": concept.trigger, "license": concept.licence}
    metadata = {
        **_KOHYA_FAMILY[concept.family],
        **{"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank},
        **{f"modelspec.{key}": value for key, value in said.items() if value},
    }
    return {LORA: File(tensors, metadata)}


def diffusers(concept: Concept) -> Files:
    """A LoRA, textual inversion or Custom Diffusion as diffusers' scripts write them, or several of these together.

    Raises ConceptError for words of each layer and for whole weights of other layers.
    """
    _check_known(concept)
    files: Files = {}
    if concept.adapter:
        tensors = {f"{path}.lora_A.weight": entry.down for path, entry in concept.adapter.items()}
        tensors |= {f"{path}.lora_B.weight": entry.up for path, entry in concept.adapter.items()}
        files[LORA] = File(tensors, _lora_metadata(concept))
    if concept.weights:
        files[CUSTOM_DIFFUSION] = File(_custom_diffusion(concept), {})
    own_names = bool(concept.weights) or len(concept.tokens) > 1  # diffusers reads one word of a file
    for word, parts in concept.tokens.items():
        for part, vectors in parts.items():
            name = (word if own_names else WORD) + ("_2" if part == "text_encoder_2" else "")
            if name in files or name.startswith(".") or set(name) & set("/\\"):
                raise ConceptError(
                    f"{concept.source}: its word {word!r} cannot name a file; import it with another --trigger"
                )
            files[name] = File({word: vectors}, {})
    return files


# --format -> what the concept's files hold; raises ConceptError where they cannot hold it.
FORMATS: Mapping[str, Callable[[Concept], Files]] = {"kohya": kohya, "diffusers": diffusers}


def _check_known(concept: Concept) -> None:
    """Raise ConceptError for what neither format holds."""
    here = "neither kohya's nor diffusers' files hold; use the file that costars wrote"
    if not (concept.adapter or concept.tokens or concept.weights):
        raise ConceptError(f"{concept.source}: has neither layers nor words to write; teach or import it again")
    if concept.per_layer and concept.tokens:
        raise ConceptError(f"{concept.source}: its words differ from layer to layer (ED-LoRA), which {here}")
    for path, weight in concept.weights.items():
        if weight.ndim != 2 or _CROSS.fullmatch(path) is None or _twin(path) not in concept.weights:
            raise ConceptError(
                f"{concept.source}: brings {path!r} whole, not keys with values of cross-attention, which {here}"
            )


def _twin(path: str) -> str:
    """The values of these keys, or the reverse."""
    return path[:-1] + ("v" if path.endswith("k") else "k")


def _kohya_stem(path: str, concept: Concept) -> str:
    part, _, own = path.partition(".")
    stem = f"{_KOHYA_PARTS[concept.family].get(part, part)}_{own.replace('.', '_')}"
    if module_path(stem) != path:
        raise ConceptError(f"{concept.source}: changes {path!r}, for which kohya has no name; use --format diffusers")
    return stem


def _lora_metadata(concept: Concept) -> dict[str, str]:
    """peft's options of each part, where each has one rank; else diffusers takes them from the tensors."""
    facts: dict[str, object] = {}
    for part, rank in _ranks(concept).items():
        # The ends of the layers' names: transformers 5 took the level text_model out of one encoder.
        layers = [p.removeprefix(part).removeprefix("text_model.") for p in concept.adapter if p.startswith(part)]
        facts |= {f"{part}r": rank, f"{part}lora_alpha": rank, f"{part}target_modules": layers}
    return {"lora_adapter_metadata": json.dumps(facts)} if facts else {}


def _ranks(concept: Concept) -> dict[str, int]:
    """The rank of each part, {} where one has layers of several."""
    pairs = {(part, len(e.down)) for path, e in concept.adapter.items() for part in PARTS if path.startswith(part)}
    ranks = dict(sorted(pairs))
    return ranks if len(ranks) == len(pairs) else {}


def _custom_diffusion(concept: Concept) -> dict[str, Tensor]:
    """With an empty tensor for each self-attention: diffusers wants every attention processor of the UNet named."""
    tensors: dict[str, Tensor] = {}
    for path, weight in concept.weights.items():
        found = _CROSS.fullmatch(path)
        assert found is not None
        tensors[f"{found[1]}.attn2.processor.to_{found[2]}_custom_diffusion.weight"] = weight
        tensors[f"{found[1]}.attn1.processor"] = torch.zeros(0)
    return tensors
