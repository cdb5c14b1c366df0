"""The LoRA recipe: a few pictures of one character to one small adapter file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from costars.errors import SceneError
from costars.model.model import Model
from costars.model.text import features, token_ids
from costars.train.attention import plain_attention
from costars.train.loss import noise_loss
from costars.types import MaskArray

UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class LoraRecipe:
    """How a concept is taught. OMG (section 4.1) trains the attention layers of UNet and text encoders
    at rank 256 for SDXL; rank, rates and steps here are what the built-in model needs."""

    rank: int = 8
    steps: int = 320
    batch: int = 8
    unet_rate: float = 2e-3
    text_rate: float = 1e-3
    warmup_steps: int = 10
    gamma: float | None = None  # no min-SNR: small noise already hides what tells one from another
    outside_weight: float = 1.0  # how much a cell outside the masks counts, where there are any (Mix-of-Show: 0)
    seed: int = 0


@dataclass(frozen=True)
class Teaching:
    """Pictures of one concept with a caption each; the captions hold the trigger word.

    masks, one for each picture and of its shape, say where in it the concept is.
    """

    name: str
    class_name: str
    trigger: str
    images: Sequence[Image.Image]
    captions: Sequence[str]
    masks: Sequence[MaskArray] = ()


def train_lora(model: Model, teaching: Teaching, recipe: LoraRecipe, path: Path) -> Iterator[float]:
    """Teach one concept and write its .safetensors; yields the loss of each step.

    The model is as it was when the iterator ends. Raises SceneError if pictures, captions and masks differ
    in number or a caption lacks the trigger.
    """
    _check(teaching)
    began, losses = time.monotonic(), list[float]()
    with torch.no_grad():
        latents = torch.cat([_latent(model, image) for image in teaching.images])
    ids = [torch.cat([token_ids(e.tokenizer, c) for c in teaching.captions]).to(model.device) for e in model.encoders]
    encoders = tuple(e.module for e in model.encoders)
    weights = cell_weights(teaching.masks, latents.shape[-2:], recipe.outside_weight) if teaching.masks else None
    with plain_attention(model.unet, encoders, model.device), _adapters(model, recipe) as groups:
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99))
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(recipe.steps):
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            ramp = min(1.0, (step + 1) / recipe.warmup_steps, 2 * (recipe.steps - step) / recipe.steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * ramp
            pick = torch.randint(len(latents), (recipe.batch,), generator=generator)
            with torch.autocast(model.device.type, torch.bfloat16):
                text = features(model.encoders, [i[pick] for i in ids])
                size_px = model.facts.size_px[0]
                alphas = model.scheduler.alphas_cumprod
                own = None if weights is None else weights[pick]
                loss = noise_loss(model.unet, alphas, latents[pick], text, size_px, generator, recipe.gamma, own)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            yield losses[-1]
        taught = {
            "seconds": round(time.monotonic() - began, 1),
            "loss": round(sum(losses[-20:]) / len(losses[-20:]), 5),
        }
        _save(model, teaching, recipe, path, taught | {"device": model.device.type})


def _check(teaching: Teaching) -> None:
    if len(teaching.images) != len(teaching.captions) or not teaching.images:
        raise SceneError(
            f"{teaching.name}: {len(teaching.images)} pictures and {len(teaching.captions)} captions; "
            "want one caption for each of at least one picture"
        )
    if teaching.masks and len(teaching.masks) != len(teaching.images):
        raise SceneError(
            f"{teaching.name}: {len(teaching.images)} pictures and {len(teaching.masks)} masks; "
            "want one mask for each picture, or none at all"
        )
    for caption in teaching.captions:
        if teaching.trigger not in caption.split():
            raise SceneError(f"{teaching.name}: the caption {caption!r} lacks the trigger {teaching.trigger!r}")


def cell_weights(masks: Sequence[MaskArray], size: Sequence[int], outside: float) -> Tensor:
    """(n, 1, h, w) how much each latent cell counts: 1 where the mask covers it, outside where not; on average 1."""
    drawn = [torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None] for mask in masks]
    cover = torch.cat([interpolate(mask, tuple(size), mode="area") for mask in drawn])
    weights = outside + (1 - outside) * cover
    return weights / weights.mean(dim=(2, 3), keepdim=True)


def _latent(model: Model, image: Image.Image) -> Tensor:
    sized = image.convert("RGB").resize(model.facts.size_px, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    mean = model.vae.encode(pixels.to(model.device, model.dtype)).latent_dist.mean
    scaled: Tensor = mean * model.vae.config["scaling_factor"]
    return scaled


@contextmanager
def _adapters(model: Model, recipe: LoraRecipe) -> Iterator[list[dict[str, object]]]:
    """Trainable adapters on UNet and text encoders; taken out again, layer by layer, at the end."""
    parts: list[tuple[nn.Module, Sequence[str], float]] = [
        (model.unet, UNET_LAYERS, recipe.unet_rate),
        *((e.module, TEXT_LAYERS, recipe.text_rate) for e in model.encoders),
    ]
    torch.manual_seed(recipe.seed)
    groups: list[dict[str, object]] = []
    try:
        for module, layers, rate in parts:
            config = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(layers))
            inject_adapter_in_model(config, module)
            groups.append({"params": [p for p in module.parameters() if p.requires_grad], "lr": rate})
        yield groups
    finally:
        for module, _, _ in parts:
            _eject(module)


def _eject(module: nn.Module) -> None:
    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    module.requires_grad_(False)


def _file_key(part: str, key: str) -> str:
    """The key as files have it: text encoders with the level that transformers 5 took out of one."""
    return key if part == "unet" or key.startswith("text_model.") else f"text_model.{key}"


def _save(model: Model, teaching: Teaching, recipe: LoraRecipe, path: Path, taught: Mapping[str, object]) -> None:
    """The diffusers format: peft's names under each part, with our card beside peft's ranks."""
    parts = {"unet": model.unet, **{e.name: e.module for e in model.encoders}}
    tensors = {
        f"{part}.{_file_key(part, key)}": value.detach().to(torch.float16).cpu().contiguous()
        for part, module in parts.items()
        for key, value in get_peft_model_state_dict(module, adapter_name="default").items()
    }
    card = {
        "name": teaching.name,
        "class_name": teaching.class_name,
        "trigger": teaching.trigger,
        "family": model.facts.family,
        "base_model": model.facts.name,
        "base_sha256": model.facts.sha256,
        "pictures": len(teaching.images),
        "recipe": asdict(recipe),
        **taught,
    }
    facts: dict[str, object] = {}
    for part in parts:
        layers = UNET_LAYERS if part == "unet" else TEXT_LAYERS
        facts |= {f"{part}.r": recipe.rank, f"{part}.lora_alpha": recipe.rank, f"{part}.target_modules": list(layers)}
    metadata = {"format": "pt", "costars": json.dumps(card), "lora_adapter_metadata": json.dumps(facts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata=metadata)
    partial.rename(path)
