"""Checks what the trainers of kohya, LyCORIS and OneTrainer say in a file's metadata about its arithmetic.

ARGUMENTS has the arguments of ss_network_args; what is not in it is noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from costars.concepts.peft_options import SEEN, TRAINING, Treatment
from costars.errors import ConceptError, ReadError
from costars.files.plain_data import parse_foreign_json

# Values of ss_network_module whose tensors are read; those of other base models have tensors that are refused.
MODULES = (
    "networks.lora",
    "networks.lora_fa",
    "networks.dylora",
    "networks.loha",
    "networks.lokr",
    "networks.oft",
    "lycoris.kohya",
    "locon.locon_kohya",
)
# Other metadata about the network: nothing that the tensors do not show.
NETWORK_METADATA: Mapping[str, Treatment] = {
    "ss_network_dim": SEEN,
    "ss_network_alpha": SEEN,
    "ss_network_dropout": TRAINING,
    "ss_scale_weight_norms": Treatment("the stored tensors are scaled"),
}
_ALGORITHMS = ("lora", "locon", "loha", "lokr", "ia3", "full", "diag-oft", "boft", "glora", "dylora", "norm")
_DECOMPOSABLE = ("lora", "locon", "loha", "lokr")  # for which LyCORIS implements dora_wd
_FOLDED = Treatment("the stored tensors or their alpha contain it")
ARGUMENTS: Mapping[str, Treatment] = {
    "algo": Treatment("is not supported", _ALGORITHMS),
    **dict.fromkeys(("conv_dim", "conv_alpha", "block_dims", "block_alphas", "conv_block_dims"), SEEN),
    **dict.fromkeys(("conv_block_alphas", "use_tucker", "use_cp", "use_conv_cp", "disable_conv_cp"), SEEN),
    **dict.fromkeys(("decompose_both", "factor", "full_matrix", "unbalanced_factorization"), SEEN),
    **dict.fromkeys(("block_size", "rescaled", "constraint", "train_norm", "train_on_input", "preset"), SEEN),
    **dict.fromkeys(("dora_wd", "weight_decompose", "wd_on_output", "unit", "lora_type"), SEEN),
    **dict.fromkeys(("use_scalar", "rs_lora"), _FOLDED),
    **dict.fromkeys(("dropout", "rank_dropout", "module_dropout", "rank_dropout_scale", "bypass_mode"), TRAINING),
    **dict.fromkeys(("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"), TRAINING),
    **dict.fromkeys(("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"), TRAINING),
    **dict.fromkeys(("train_t5xxl", "train_llm_adapter", "warn_on_unmatched", "verbose"), TRAINING),
}


def check_training_metadata(metadata: Mapping[str, str], keys: Iterable[str], source: str) -> tuple[str, ...]:
    """Notes on what the metadata says and is not known.

    Raises ConceptError where it says that the file has another arithmetic than its tensors show.
    """
    notes = []
    module = metadata.get("ss_network_module", "")
    if module and module not in MODULES:
        notes.append(f"{source!r} was trained by {module[:60]!r}, which is not known; its tensors are read as they are")
    arguments = _parse_arguments(metadata)
    algorithm = str(arguments.get("algo", "lora")).lower()
    for name, value in arguments.items():
        treatment = ARGUMENTS.get(name)
        if treatment is None:
            notes.append(f"{source!r} was trained with the argument {str(name)[:40]!r}, which is not known")
        elif not treatment.accepts(value.lower() if isinstance(value, str) else value):
            raise ConceptError(
                f"{source}: was trained with {name} {str(value)[:40]!r} (ss_network_args), which {treatment.why}; "
                f"use one of {', '.join(_ALGORITHMS)}"
            )
    if _is_set(arguments.get("rs_lora")) and algorithm == "glora":
        raise ConceptError(
            f"{source}: is a GLoRA with rs_lora, whose scale it does not store; train it without rs_lora"
        )
    decomposed = _is_set(arguments.get("dora_wd")) or _is_set(arguments.get("weight_decompose"))
    if decomposed and algorithm in _DECOMPOSABLE and not any(key.endswith("dora_scale") for key in keys):
        raise ConceptError(f"{source}: was trained with dora_wd, but has no dora_scale; fetch it again")
    return (*notes, *_describe_missing_alpha(metadata, keys, source))


def _describe_missing_alpha(metadata: Mapping[str, str], keys: Iterable[str], source: str) -> Iterator[str]:
    """A note where the metadata states another scale than 1, and no tensor does."""
    try:
        alpha, rank = (float(metadata[f"ss_network_{name}"]) for name in ("alpha", "dim"))
    except (KeyError, ValueError):
        return
    key_list = list(keys)
    has_factors = any(key.endswith(".lora_up.weight") for key in key_list)
    if 0 < alpha != rank > 0 and has_factors and not any(key.endswith(".alpha") for key in key_list):
        yield (
            f"{source!r} states ss_network_alpha {alpha:g} for ss_network_dim {rank:g}, but its layers have no alpha, "
            f"so their scale is 1, as in A1111 and ComfyUI; for the stated scale set weight: {alpha / rank:g}"
        )


def _parse_arguments(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        parsed = parse_foreign_json(metadata.get("ss_network_args", "{}"), "ss_network_args")
    except ReadError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _is_set(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes", "y", "t", "on")
