"""The options of peft: which are read, which the tensors imply, and which are refused.

They are beside a peft file (adapter_config.json), or in a diffusers file's metadata (lora_adapter_metadata, led by the
part: "unet.r"). OPTIONS has one line for every field of peft's configurations; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Treatment(NamedTuple):
    """What is done with an option: why any value is right, or the values besides empty ones that are."""

    why: str
    allowed: tuple[Any, ...] | None = None

    def accepts(self, value: Any) -> bool:
        """Whether a file with this value is applied."""
        if self.allowed is None or value is None or value is False or value in ("", [], {}, ()):
            return True
        return any(value is a or (type(value) is type(a) and value == a) for a in self.allowed)


READ = Treatment("read: part of the scale or of the formula")
SEEN = Treatment("the tensors show it")
ABOUT = Treatment("describes the file or its base model")
TRAINING = Treatment("acts in training only")
_CONVERTED = "changes the base weights; convert it (save_pretrained with path_initial_model_for_weight_conversion)"


def _refuse(why: str, *allowed: Any) -> Treatment:
    return Treatment(why, allowed)


_COMMON: Mapping[str, Treatment] = {
    "peft_type": READ,
    "task_type": ABOUT,
    "auto_mapping": ABOUT,
    "peft_version": ABOUT,
    "base_model_name_or_path": ABOUT,
    "revision": ABOUT,
    "inference_mode": ABOUT,
    "target_modules": SEEN,
    "exclude_modules": SEEN,
    "modules_to_save": _refuse("stores whole modules besides the adapter"),
}
_SOME_LAYERS: Mapping[str, Treatment] = {"layers_to_transform": SEEN, "layers_pattern": SEEN}
_TRANSPOSED: Mapping[str, Treatment] = {"fan_in_fan_out": _refuse("transposes the weights")}
_SCALED: Mapping[str, Treatment] = {"r": READ, "rank_pattern": READ, "alpha_pattern": READ}
_LYCORIS: Mapping[str, Treatment] = {
    **_COMMON,
    **_SOME_LAYERS,
    **_SCALED,
    "alpha": READ,
    "rank_dropout": TRAINING,
    "module_dropout": TRAINING,
    "use_effective_conv2d": SEEN,
    "init_weights": TRAINING,
}
# peft_type -> option -> treatment.
OPTIONS: Mapping[str, Mapping[str, Treatment]] = {
    "LORA": {
        **_COMMON,
        **_SOME_LAYERS,
        **_TRANSPOSED,
        **_SCALED,
        "lora_alpha": READ,
        "use_rslora": READ,
        "use_dora": READ,
        "lora_dropout": TRAINING,
        "init_lora_weights": _refuse(_CONVERTED, True, "gaussian", "orthogonal", "eva", "mica"),
        "bias": _refuse("stores biases of the base model", "none"),
        "lora_bias": _refuse("gives the up matrices biases"),
        "layer_replication": _refuse("repeats layers of the base model"),
        "target_parameters": _refuse("changes parameters that are not weights of layers"),
        "trainable_token_indices": _refuse("trains token embeddings; use a textual inversion"),
        "megatron_config": _refuse("is of Megatron's parallel layers"),
        "megatron_core": ABOUT,
        "loftq_config": _refuse("belongs to a quantized base model"),
        "corda_config": _refuse(_CONVERTED),
        "lora_ga_config": _refuse(_CONVERTED),
        "eva_config": TRAINING,
        "velora_config": TRAINING,
        "kasa_config": _refuse("truncates the base weights (KaSA)"),
        "monteclora_config": _refuse("samples its factors (MonteCLoRA)"),
        "arrow_config": _refuse("mixes several adapters (Arrow)"),
        "alora_invocation_tokens": _refuse("acts on some tokens only (aLoRA)"),
        "use_qalora": _refuse("pools the inputs of a quantized base model (QA-LoRA)"),
        "qalora_group_size": Treatment("used by use_qalora only"),
        "use_bdlora": _refuse("has block-diagonal factors (BD-LoRA)"),
        "runtime_config": ABOUT,
        "ensure_weight_tying": SEEN,
    },
    "LOHA": _LYCORIS,
    "LOKR": {**_LYCORIS, "decompose_both": SEEN, "decompose_factor": SEEN, "rank_dropout_scale": TRAINING},
    "OFT": {
        **_COMMON,
        **_SOME_LAYERS,
        **_TRANSPOSED,
        "r": SEEN,
        "oft_block_size": SEEN,
        "module_dropout": TRAINING,
        "bias": _refuse("stores biases of the base model", "none"),
        "init_weights": TRAINING,
        "coft": _refuse("projects the rotations (COFT)"),
        "eps": Treatment("used by coft only"),
        "block_share": SEEN,
        "use_cayley_neumann": READ,
        "num_cayley_neumann_terms": READ,
    },
    "BOFT": {
        **_COMMON,
        **_SOME_LAYERS,
        **_TRANSPOSED,
        "boft_block_size": SEEN,
        "boft_block_num": SEEN,
        "boft_n_butterfly_factor": SEEN,
        "boft_dropout": TRAINING,
        "bias": _refuse("stores biases of the base model", "none"),
        "init_weights": TRAINING,
    },
    "IA3": {**_COMMON, **_TRANSPOSED, "feedforward_modules": READ, "init_ia3_weights": TRAINING},
}
