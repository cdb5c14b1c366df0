"""Reads token embeddings: textual inversions of other programs, and those in files written by costars."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from costars.concepts.base_model import CROSS_ATTENTION_COUNTS, EMBEDDING_WIDTHS
from costars.concepts.dialects import TOKENS
from costars.errors import ConceptError

Embeddings = dict[str, dict[str, Tensor]]  # {token: {"text_encoder": (n, d), "text_encoder_2": (n, d)}}

MAX_VECTORS = 75  # tokens that fit a CLIP prompt
MAX_TOKEN = 64  # characters
SDXL_SECOND_WIDTH = 1280  # of SDXL's second text encoder
_WIDTHS = (768, 1024, SDXL_SECOND_WIDTH)  # of SD 1.5's encoder and SDXL's first, of SD 2's, of SDXL's second
# Keys that do not name their token -> text encoder: of sd-webui, of SDXL's tools, of diffusers' trainers.
_UNNAMED: Mapping[str, str] = {
    "emb_params": "text_encoder",
    "string_to_param.*": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
_COMPLETE: tuple[frozenset[str], ...] = tuple(
    frozenset(keys.split())
    for keys in (
        "emb_params",
        "string_to_param.*",
        "clip_l clip_g",
        "text_encoders_0 text_encoders_1",
        "text_encoders_0",
    )
)
# Keys of files that are known and not supported -> what they are.
_UNSUPPORTED: Mapping[str, str] = {
    "emb_params_out": "output embeddings, which are added after the text encoder (OneTrainer)",
    "clip_l_out": "output embeddings, which are added after the text encoder (OneTrainer)",
    "clip_g_out": "output embeddings, which are added after the text encoder (OneTrainer)",
    "t5": "embeddings for T5 (SD 3, FLUX)",
    "t5xxl": "embeddings for T5 (SD 3, FLUX)",
    "t5_out": "embeddings for T5 (SD 3, FLUX)",
    "qwen3": "embeddings for Qwen",
    "text_encoders_2": "embeddings for a third text encoder (SD 3)",
}


def is_textual_inversion(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with tensors of these shapes holds embeddings and nothing else."""
    all_known = all(key in _UNNAMED or key in _UNSUPPORTED or _is_token(key, shape) for key, shape in shapes.items())
    return bool(shapes) and all_known and all(1 <= len(shape) <= 2 for shape in shapes.values())


def _is_token(key: str, shape: tuple[int, ...]) -> bool:
    is_bracketed = key.startswith("<") and key.endswith(">")
    return is_bracketed or ("." not in key and bool(shape) and shape[-1] in _WIDTHS)


def read_textual_inversion(tensors: Mapping[str, Tensor], name: str, source: str) -> Embeddings:
    """Read a textual inversion of sd-webui (emb_params), of SDXL (clip_l and clip_g) or diffusers ({token: tensor}).

    The first two do not store their token: it is `name`. Raises ConceptError if half of an SDXL one is missing, and
    for embeddings that a prompt cannot hold.
    """
    for key in tensors:
        if key in _UNSUPPORTED:
            raise ConceptError(
                f"{source}: contains {key!r}, {_UNSUPPORTED[key]}, which is not supported; train it without them"
            )
    unnamed = {key: tensor for key, tensor in tensors.items() if key in _UNNAMED}
    if unnamed and (len(unnamed) < len(tensors) or set(unnamed) not in _COMPLETE):
        raise ConceptError(
            f"{source}: contains {', '.join(tensors)}, expected only emb_params, or clip_l with clip_g, or "
            "text_encoders_0 with text_encoders_1; use a complete textual inversion"
        )
    if unnamed:
        tokens = {name: {_UNNAMED[key]: tensor for key, tensor in unnamed.items()}}
    else:
        tokens = {key: {"text_encoder": tensor} for key, tensor in tensors.items()}
    return {token: _check_embeddings(token, parts, MAX_VECTORS, source) for token, parts in tokens.items()}


def has_named_tokens(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is a textual inversion that stores its tokens, as diffusers writes it."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return is_textual_inversion(shapes) and not any(key in _UNNAMED or key in _UNSUPPORTED for key in shapes)


def join_encoders(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Join the files of SDXL's two text encoders under costars' keys; None if `second` is not for the second one."""
    if not has_named_tokens(second) or any(tensor.shape[-1] in EMBEDDING_WIDTHS for tensor in second.values()):
        return None
    return to_tensors({token: {"text_encoder": first[token], "text_encoder_2": second[token]} for token in first})


def read_tokens(tensors: Mapping[str, Tensor], per_layer: bool, source: str) -> Embeddings:
    """Read the embeddings of a file written by costars; with `per_layer` one vector per cross-attention layer."""
    tokens: Embeddings = {}
    for key, tensor in tensors.items():
        part, _, token = key.removeprefix(TOKENS).partition(".")
        tokens.setdefault(token, {})[part] = tensor
    max_vectors = max(CROSS_ATTENTION_COUNTS) if per_layer else MAX_VECTORS
    return {token: _check_embeddings(token, parts, max_vectors, source) for token, parts in tokens.items()}


def to_tensors(tokens: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The embeddings under the keys of costars' files."""
    return {f"{TOKENS}{part}.{token}": tensor for token, parts in tokens.items() for part, tensor in parts.items()}


def _check_embeddings(token: str, parts: Mapping[str, Tensor], max_vectors: int, source: str) -> dict[str, Tensor]:
    """Return each part as float32 (n, d), with the same n for all text encoders; raises ConceptError otherwise."""
    if not token.isprintable() or not token or " " in token or len(token) > MAX_TOKEN:
        raise ConceptError(
            f"{source}: invalid token {token!r}; rename the file to one printable word of up to {MAX_TOKEN} characters"
        )
    embeddings = {part: torch.atleast_2d(parts[part].to(torch.float32)) for part in sorted(parts)}
    counts = {len(tensor) for tensor in embeddings.values()}
    if "text_encoder" not in embeddings or next(iter(embeddings.values())).shape[-1] == SDXL_SECOND_WIDTH:
        raise ConceptError(
            f"{source}: token {token!r} has embeddings only for SDXL's second text encoder; "
            "put both of its files side by side, as NAME.safetensors and NAME_2.safetensors, and use the first"
        )
    if set(embeddings) - set(_UNNAMED.values()) or len(counts) != 1 or not 1 <= max(counts) <= max_vectors:
        shapes = ", ".join(f"{part} {tuple(t.shape)}" for part, t in embeddings.items())
        raise ConceptError(
            f"{source}: token {token!r} has embeddings {shapes}, expected 1 to {max_vectors} vectors, the same number "
            "for each text encoder; use a complete file"
        )
    if not all(t.ndim == 2 and t.isfinite().all() for t in embeddings.values()):
        raise ConceptError(f"{source}: token {token!r} has non-finite embeddings; fetch the file again")
    return embeddings
