"""A checkpoint's configuration: files that can be read at all, and values that would fail only while drawing.

Wrong shapes are found when the weights are loaded. What is left are numbers that no weight has the shape of, and values
of another type than the libraries state in their signatures but do not check.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import torch

from costars.errors import ReadError
from costars.files.plain_data import parse_foreign_json
from costars.files.regular_file import check_regular, read_text

if TYPE_CHECKING:
    from costars.model.text_encoder import TextEncoder

MAX_CONFIG_BYTES = 20_000_000  # a tokenizer.json has 4 MB
MAX_NUMBER = 1_000_000  # in the configuration of a network; the largest is the size of a vocabulary
MAX_LIST = 1_000  # entries of a list; the largest lists the targets of an adapter
MAX_LAYERS = 200
READ_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
_LAYER_COUNTS = ("layers_per_block", "num_hidden_layers", "transformer_layers_per_block")
_POSITIVE = ("norm_eps", "layer_norm_eps", "scaling_factor", "sample_size", "num_train_timesteps", "beta_start")
_PLAIN = (int, float, bool, str, type(None))
_PROBE_STEPS = 4


class ConfigError(ValueError):
    """A value of a configuration file; the caller names the checkpoint."""


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file as it is. Raises ReadError if it is no JSON object."""
    config = parse_foreign_json(read_text(path, MAX_CONFIG_BYTES), path)
    if not isinstance(config, dict):
        raise ReadError(path, "is not a JSON object", "download it again")
    return config


def check_files(folder: Path | None) -> None:
    """Raises ReadError for a file of a checkpoint folder that is not a regular one, or a configuration out of bounds.

    A pipe in the place of a file would be waited for.
    """
    if folder is None or not folder.is_dir():
        return
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for path in place.iterdir():
            if path.suffix in READ_SUFFIXES:
                check_regular(path)
                if path.name == "config.json":
                    _check_numbers(read_config(path), path)


def _check_numbers(config: Mapping[str, Any], path: Path) -> None:
    for key, value in config.items():
        numbers = [v for v in _flatten(value) if isinstance(v, int | float)]
        most = MAX_LAYERS if key in _LAYER_COUNTS else MAX_NUMBER
        if any(not abs(v) <= most for v in numbers):
            raise ReadError(path, f"{key} is {str(value)[:60]}, want numbers up to {most}", "download it again")
        if isinstance(value, list | dict) and len(value) > MAX_LIST:
            raise ReadError(path, f"{key} has {len(value)} entries, at most {MAX_LIST} are read", "download it again")


def _flatten(value: Any) -> Iterable[Any]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _flatten(inner)
    yield value


def check_values(unet: Any, vae: Any, encoders: Sequence[TextEncoder], scheduler: Any) -> None:
    """Raises ConfigError for a value with which drawing would fail."""
    for name, part in (("unet", unet), ("vae", vae)):
        check_types(name, type(part), part.config)
    for encoder in encoders:
        _check_positive(encoder.name, encoder.module.config.to_dict())
        _check_tokenizer(encoder)
    lengths = {encoder.spec.tokenizer: encoder.tokenizer.model_max_length for encoder in encoders}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ConfigError(f"model_max_length differs between the tokenizers ({each}), want the same")
    _probe(scheduler)


def check_types(name: str, kind: type, config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value of another type than the class states, or a number that must be above 0."""
    try:
        hints = get_type_hints(vars(kind)["__init__"])
    except (KeyError, NameError):  # no signature of its own, or one that names what is not imported
        hints = {}
    for key, hint in hints.items():
        is_union = get_origin(hint) in (Union, types.UnionType)
        allowed = get_args(hint) if is_union else (hint,)
        value = config.get(key)
        if value is not None and set(allowed) <= {*_PLAIN} and not _is_one_of(value, allowed):
            wanted = " or ".join(option.__name__ for option in allowed if option is not type(None))
            raise ConfigError(f"{name}: {key} is {value!r}, want {wanted}")
    _check_positive(name, config)


def _is_one_of(value: object, allowed: Sequence[type]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, tuple(allowed)) or (isinstance(value, int) and float in allowed)


def _check_positive(name: str, config: Mapping[str, Any]) -> None:
    for key in _POSITIVE:
        value = config.get(key, 1)
        if key in config and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ConfigError(f"{name}: {key} is {str(value)[:60]}, want a number above 0")


def _check_tokenizer(encoder: TextEncoder) -> None:
    """A prompt is start token, words, end token and padding, and every id has an embedding."""
    tokenizer, config = encoder.tokenizer, encoder.module.config
    length, most = tokenizer.model_max_length, config.max_position_embeddings
    if not isinstance(length, int) or not 2 < length <= most:
        raise ConfigError(
            f"{encoder.spec.tokenizer}: model_max_length is {length}, want 3 to {most}, what the text encoder reads"
        )
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, key)
        if not isinstance(value, int) or not 0 <= value < config.vocab_size:
            raise ConfigError(f"{encoder.spec.tokenizer}: {key} is {value}, want 0 to {config.vocab_size - 1}")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"{encoder.spec.tokenizer}: has {len(tokenizer)} tokens, but the text encoder {config.vocab_size}"
        )


def _probe(scheduler: Any) -> None:
    """Take a step on a tiny latent: a scheduler reads its numbers when it computes, not when it is made."""
    if not hasattr(scheduler, "scale_model_input"):  # of another kind than the ones that can sample here
        return
    probe = type(scheduler).from_config(scheduler.config)
    probe.set_timesteps(_PROBE_STEPS)
    latent = torch.ones(1, 1, 1, 1)
    first = probe.timesteps[0]
    with torch.random.fork_rng(devices=[]):  # an ancestral sampler draws noise
        result = probe.step(0.1 * latent, first, probe.scale_model_input(latent, first)).prev_sample
    if not bool(torch.isfinite(result).all()):
        raise ConfigError(f"scheduler: a step with its numbers is not finite ({type(scheduler).__name__})")
