"""Baselines for the two stages: diffusers' own pipeline, and the official schedule of OMG."""

from __future__ import annotations

from typing import Any

import torch
from checkpoint import ATTENTION, RANK
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from timing import now, peak_memory, time_call

from costars.model.model import Model
from costars.model.predict import Conditioning, predict_noise
from costars.types import Text

PROMPT = "a man in a park"
PIPELINE_STEPS = 10  # the cost is per step, and nothing else is timed
BATCHES = (1, 2, 4)  # pictures at once, two rows each
ADAPTERS = 2  # the official schedule's calls switch between them


@torch.no_grad()
def measure_pipeline(model: Model, steps: int = PIPELINE_STEPS) -> dict[str, Any]:
    """Seconds per step of diffusers' own pipeline without adapters, by pictures at once; and of its cheapest row."""
    own, empty = model.encode_text(PROMPT), model.encode_text("")
    inputs: dict[str, Any] = {"prompt_embeds": own.tokens[0:1], "negative_prompt_embeds": empty.tokens[0:1]}
    if own.pooled is not None:
        pipeline_class: Any = StableDiffusionXLPipeline
        inputs |= {"pooled_prompt_embeds": own.pooled, "negative_pooled_prompt_embeds": empty.pooled}
        unused = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    else:
        pipeline_class = StableDiffusionPipeline
        unused = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        unused |= {"requires_safety_checker": False}
    pipeline = pipeline_class(unet=model.unet, vae=model.vae, scheduler=model.scheduler, **unused)
    pipeline.set_progress_bar_config(disable=True)
    width, height = model.info.size_px
    inputs |= {"width": width, "height": height, "output_type": "latent", "guidance_scale": 5.0}
    step_seconds, peaks = {}, list[float | None]()
    for pictures in BATCHES:
        marks: list[float] = []

        def mark(_: Any, i: int, __: Any, values: dict[str, Any], marks: list[float] = marks) -> dict[str, Any]:
            if i in (0, steps - 1):
                marks.append(now(model.device))
            return values

        pipeline(num_images_per_prompt=pictures, num_inference_steps=2, **inputs)
        with peak_memory(model.device, peaks):
            pipeline(num_images_per_prompt=pictures, num_inference_steps=steps, callback_on_step_end=mark, **inputs)
        step_seconds[pictures] = (marks[1] - marks[0]) / (steps - 1)
    row = min(seconds / (2 * pictures) for pictures, seconds in step_seconds.items())
    return {"step_seconds": step_seconds, "row_seconds": row, "peak_gib": dict(zip(BATCHES, peaks, strict=True))}


@torch.no_grad()
def measure_official_calls(model: Model, rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of the two UNet calls of the official schedule.

    base_call has four base rows and materialises the attention probabilities, in both stages; concept_call has a
    concept's two rows after its adapter was switched on.
    """
    text, peaks = model.encode_text(PROMPT), list[float | None]()
    before = model.unet.attn_processors
    try:
        model.unet.set_attn_processor(AttnProcessor())  # materialised probabilities in every layer, edited or not
        with peak_memory(model.device, peaks):
            base = time_call(lambda: call_unet(model, text, 4), rounds, model.device)
        model.unet.set_attn_processor(AttnProcessor2_0())  # the official concept pipeline uses xFormers
        with peak_memory(model.device, peaks):
            concept = _time_concept_call(model, text, rounds)
    finally:
        model.unet.set_attn_processor(before)
    return {"base_call": base, "concept_call": concept, "peak_gib": {"base": peaks[0], "concept": peaks[1]}}


def _time_concept_call(model: Model, text: Text, rounds: int) -> float:
    config = LoraConfig(r=RANK, target_modules=list(ATTENTION), init_lora_weights=False)
    with model.device:
        for i in range(ADAPTERS):
            inject_adapter_in_model(config, model.unet, adapter_name=str(i))
    layers = [module for module in model.unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.to(model.device, model.dtype)
        layer.requires_grad_(False)

    def call_each_adapter() -> None:
        for i in range(ADAPTERS):
            for layer in layers:
                layer.set_adapter(str(i))
            call_unet(model, text, 2)

    seconds = time_call(call_each_adapter, rounds, model.device) / ADAPTERS
    for name, module in list(model.unet.named_modules()):
        if isinstance(module, LoraLayer):
            parent = model.unet.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    del model.unet.peft_config
    return seconds


def call_unet(model: Model, text: Text, rows: int) -> torch.Tensor:
    """The prediction of one UNet call of equal rows, with the processors that are set."""
    h, w = model.latent_size(model.info.size_px)
    sample = torch.randn(rows, model.info.latent_channels, h, w, device=model.device, dtype=model.dtype)
    pooled = None if text.pooled is None else text.pooled.expand(rows, -1)
    own = Conditioning(text.tokens[0:1].expand(rows, -1, -1), pooled, model.size_ids(model.info.size_px))
    return predict_noise(model.unet, sample, torch.tensor(500, device=model.device), own)
