"""Translates the keys of adapter files to module paths of the model and roles of tensors."""

from __future__ import annotations

import re

from costars.concepts.dialects import CHANGES, DIALECTS, PARTS, WEIGHTS
from costars.concepts.layer_paths import TEXT_LAYER, UNET_LAYER, split_underscores
from costars.concepts.open_clip import from_open_clip
from costars.concepts.sgm_blocks import from_sgm
from costars.concepts.tensor_kinds import TENSOR_KINDS, Ignored, Role

# Ending of a key -> role of the tensor in its layer, longer endings first.
ROLES = {
    pattern.removeprefix("*"): kind.name
    for pattern, kind in sorted(TENSOR_KINDS.items(), key=lambda item: -len(item[0]))
    if isinstance(kind, Role)
}
_IGNORED = {pattern.removeprefix("*"): kind for pattern, kind in TENSOR_KINDS.items() if isinstance(kind, Ignored)}

_UNET_START = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding"
    r"|input_blocks|middle_block|output_blocks)\b"
)
_PROCESSOR_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
# peft puts the name of the adapter behind its parameters, and removes it from most files.
_ADAPTER_NAME = re.compile(
    r"(\.(?:lora_[AB]|lora_magnitude_vector|oft_R|hada_\w+|lokr_\w+|boft_[Rs]|ia3_l))\.(?!weight$|bias$)[\w-]+(\.weight)?$"
)


def read_key(key: str) -> tuple[str, str] | None:
    """(module path, role) of a key; None if it is not a known tensor of a known layer."""
    key = _ADAPTER_NAME.sub(lambda match: match[1] + (match[2] or ""), key)
    ending = next((e for e in ROLES if key.endswith(e)), None)
    path = None if ending is None else module_path(key.removesuffix(ending))
    return None if ending is None or path is None else (path, ROLES[ending])


def is_ignored(key: str, element_count: int) -> bool:
    """Whether a tensor changes no layer and is skipped."""
    kind = next((kind for ending, kind in _IGNORED.items() if key.endswith(ending)), None)
    if kind is None or key.startswith((WEIGHTS, CHANGES)):
        return False
    return not kind.if_empty or element_count == 0


def module_path(stem: str) -> str | None:
    """Module path, starting with its part, for a key without its ending; None if it is unknown.

    lora_unet_conv_in and base_model.model.conv_in are both unet.conv_in.
    """
    path = stem
    for dialect in DIALECTS:
        if dialect.replacement is None:
            continue
        if dialect.leading:
            path = dialect.replacement + path.removeprefix(dialect.marker) if path.startswith(dialect.marker) else path
        elif not dialect.underscored:
            path = path.replace(dialect.marker, dialect.replacement)
        elif stem.startswith(dialect.marker):
            return _from_underscores(stem.removeprefix(dialect.marker), dialect.replacement)
    path = path.replace(".processor.", ".")
    if _UNET_START.match(path):
        path = f"unet.{path}"
    part = next((p for p in PARTS if path.startswith(p)), "")
    if not part:
        return None
    name = path.removeprefix(part)
    return part + (_normalize_unet_name(name) if part == "unet." else _normalize_text_name(name))


def _from_underscores(flat: str, part: str) -> str | None:
    path = split_underscores(flat)
    if path is None:
        return None
    if part != "unet.":
        name: str | None = from_open_clip(path) or path
    else:
        name = path if UNET_LAYER.fullmatch(path) else from_sgm(path)
    known = UNET_LAYER if part == "unet." else TEXT_LAYER
    return part + name if name is not None and known.fullmatch(name) else None


def _normalize_unet_name(name: str) -> str:
    name = from_sgm(name) or name
    return f"{name}.0" if name.endswith(".to_out") else name


def _normalize_text_name(name: str) -> str:
    """Add the level text_model, which transformers 5 removed, and rename layers of old attention processors."""
    name = from_open_clip(name) or name
    start, _, last = name.rpartition(".")
    if start.endswith("self_attn"):
        name = f"{start}.{_PROCESSOR_NAMES.get(last, last)}"
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"
