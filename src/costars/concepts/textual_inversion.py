"""Words that were taught to the text encoders: textual inversions, and those that our own files hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from costars.concepts.base_model import PER_LAYER, WORD
from costars.errors import ConceptError

Words = dict[str, dict[str, Tensor]]

OURS = "tokens."  # tokens.<part>.<word> in a file of ours
MAX_VECTORS = 75  # words that a prompt of CLIP has room for
_SIZES = (768, 1024, 1280)  # of the text encoders of SD 1.5 and SDXL, of SD 2, and SDXL's second
_NAMELESS: Mapping[str, str] = {"emb_params": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def is_inversion(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file of these tensors holds words and nothing else, as textual inversions do."""
    named = all(key in _NAMELESS or _is_word(key, shape) for key, shape in shapes.items())
    return bool(shapes) and named and all(1 <= len(shape) <= 2 for shape in shapes.values())


def _is_word(key: str, shape: tuple[int, ...]) -> bool:
    bracketed = key.startswith("<") and key.endswith(">")
    return bracketed or ("." not in key and bool(shape) and shape[-1] in _SIZES)


def read_inversion(tensors: Mapping[str, Tensor], name: str, source: str) -> Words:
    """{word: {"text_encoder": (n, d), "text_encoder_2": (n, d)}} of a textual inversion.

    Known are sd-webui's (emb_params), the one of SDXL (clip_l and clip_g) and diffusers' ({word: tensor}).
    The first two do not say their word: it is the name. Raises ConceptError for half of an SDXL one.
    """
    nameless = {key: tensor for key, tensor in tensors.items() if key in _NAMELESS}
    if nameless and (len(nameless) < len(tensors) or set(nameless) not in ({"emb_params"}, {"clip_l", "clip_g"})):
        raise ConceptError(
            f"{source}: holds {', '.join(tensors)}, want emb_params alone or clip_l with clip_g; "
            "use a textual inversion that is whole"
        )
    if nameless:
        words = {name: {_NAMELESS[key]: tensor for key, tensor in nameless.items()}}
    else:
        words = {key: {"text_encoder": tensor} for key, tensor in tensors.items()}
    return {word: _checked(word, parts, MAX_VECTORS, source) for word, parts in words.items()}


def is_words(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds words under their own names, as diffusers' textual inversions do."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return is_inversion(shapes) and not any(key in _NAMELESS for key in shapes)


def two_files(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The words of both text encoders under the keys of our files; None where the second is no second half."""
    if not is_words(second) or any(tensor.shape[-1] in WORD for tensor in second.values()):
        return None
    return written({word: {"text_encoder": first[word], "text_encoder_2": second[word]} for word in first})


def read_ours(tensors: Mapping[str, Tensor], per_layer: bool, source: str) -> Words:
    """The words of a file that costars wrote."""
    words: Words = {}
    for key, tensor in tensors.items():
        part, _, word = key.removeprefix(OURS).partition(".")
        words.setdefault(word, {})[part] = tensor
    most = max(PER_LAYER) if per_layer else MAX_VECTORS
    return {word: _checked(word, parts, most, source) for word, parts in words.items()}


def written(words: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The words under the keys of our files."""
    return {f"{OURS}{part}.{word}": tensor for word, parts in words.items() for part, tensor in parts.items()}


def _checked(word: str, parts: Mapping[str, Tensor], most: int, source: str) -> dict[str, Tensor]:
    """Each part as float32 (n, d), as many vectors in every text encoder."""
    if not word.isprintable() or not word or " " in word or len(word) > 64:
        raise ConceptError(f"{source}: its word would be {word!r}; name the file in one word of at most 64 characters")
    sized = {part: torch.atleast_2d(parts[part].to(torch.float32)) for part in sorted(parts)}
    counts = {len(tensor) for tensor in sized.values()}
    if "text_encoder" not in sized or next(iter(sized.values())).shape[-1] == 1280:
        raise ConceptError(
            f"{source}: its word {word!r} is of SDXL's second text encoder alone; "
            "put both of its files side by side, as NAME.safetensors and NAME_2.safetensors, and use the first"
        )
    if set(sized) - set(_NAMELESS.values()) or len(counts) != 1 or not 1 <= max(counts) <= most:
        shapes = ", ".join(f"{part} {tuple(t.shape)}" for part, t in sized.items())
        raise ConceptError(
            f"{source}: its word {word!r} is {shapes}, want 1 to {most} vectors, as many in each encoder; "
            "use a file that is whole"
        )
    if not all(t.ndim == 2 and t.isfinite().all() for t in sized.values()):
        raise ConceptError(f"{source}: its word {word!r} holds numbers that are not finite; fetch the file again")
    return sized
