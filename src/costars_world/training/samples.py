"""Draws sheets of samples of a model in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image

from costars.builtin.segmenter import WorldSegmenter
from costars.concepts.load import load_concept
from costars.images.contact_sheet import overlay_masks
from costars.model.families import SDXL
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.model.model import Model, ModelInfo
from costars.sample.loop import denoise, prepare_sampler
from costars.types import Adapter, DenoisingPath
from costars_world.judge.judge import Judge, crop_figure
from costars_world.render.world import sample_picture
from costars_world.training import loop
from costars_world.training.base import BaseModel
from costars_world.training.vae import images_to_tensor

# Held-out prompts with every class and place, both depth orders, and one to five figures.
PROMPTS = (
    "a woman in front of a man in a park",
    "a man in front of a woman on a beach",
    "a dog in front of a woman on a street",
    "a robot to the left of a cat in a room",
    "a woman and a woman in the snow",
    "a man behind a robot on the moon",
    "a cat next to a man in a desert",
    "a man to the right of a man in a forest",
    "a woman to the left of a dog on a beach",
    "a robot in front of a robot in a park",
    "a cat behind a dog in the snow",
    "a woman in front of a robot on a street",
    "a man and a dog on the moon",
    "a woman behind a man in a room",
    "a cat in front of a man in a forest",
    "a dog to the left of a robot in a desert",
    "a woman with long red hair and glasses in front of a man with a beard on a beach",
    "a man with a blue striped shirt next to a woman with a green dress in a park",
    "a man with spiky blond hair to the left of a dog with spotted white fur in a room",
    "a woman with curly black hair and a straw hat behind a cat with orange fur in the snow",
    "a robot with a red body and a visor in front of a woman with a yellow dotted dress in a desert",
    "a woman with dark skin and a blue beanie next to a man with pale skin and sunglasses on a street",
    "a man with a red cap in front of a man with curly white hair on the moon",
    "a woman with a pink bun to the right of a robot with a teal body in a forest",
    "a woman on a beach",
    "a man with a beard and glasses in the snow",
    "a dog with golden fur and a red collar in a room",
    "a robot with a blue body and a heart on the chest on the moon",
    "a man, a woman and a dog in a park",
    "a cat, a robot and a woman on a street",
    "a woman, a man, a cat and a dog on a beach",
    "a man, a woman, a dog, a cat and a robot in the snow",
)
STEPS = 30


def copy_with_average(base: BaseModel, run: loop.Run) -> BaseModel:
    """Copy a model in training, with the moving average of its weights."""
    copied = copy.deepcopy(base)
    loop.copy_average(run, copied.trainable_modules())
    copied.unet.set_attn_processor(AttnProcessor2_0())
    return copied


def make_model(base: BaseModel, vae: AutoencoderKL, device: torch.device) -> Model:
    """Wrap the parts as a costars model; weights are shared, not copied."""
    info = ModelInfo(
        name="in training",
        family=SDXL.name,
        sha256="",
        size_px=(128, 128),
        cell_px=8,
        latent_channels=8,
        segmenter="world",
    )
    for part in (base.unet, base.text_encoder, base.text_encoder_2, vae):
        part.to(device).eval()
    return Model(
        unet=base.unet,
        vae=vae,
        encoders=base.encoders(),
        scheduler=base.scheduler,
        info=info,
        device=device,
        dtype=torch.float32,
    )


def sample_images(
    model: Model,
    prompts: Sequence[str],
    *,
    adapter: Adapter | None = None,
    steps: int | None = None,
    guidance_scale: float = 5.0,
    seed: int = 0,
) -> list[Image.Image]:
    """Sample one image per prompt, with seeds seed, seed + 1, ...; the adapter is optional."""
    images = []
    named = {} if adapter is None else {"concept": adapter}
    with one_adapter_per_row(model.unet, "unet.", named) as adapters, text_adapter(model.encoders, adapter or {}):
        for i, prompt in enumerate(prompts):
            size_px = model.info.size_px
            plan = prepare_sampler(
                model.scheduler, steps or STEPS, model.device, size_px, guidance_scale, seed=seed + i
            )
            text, negative = model.encode_text(prompt), model.encode_text("")
            path = DenoisingPath("global", text, negative, adapter=next(iter(named), None))
            *_, step = denoise(model, plan.noise(model), [path], plan, adapters=adapters)
            images.append(model.decode(step.latent))
    return images


@torch.no_grad()
def draw_reconstructions(vae: AutoencoderKL, count: int = 8) -> Image.Image:
    """Draw held-out pictures above their reconstructions by the autoencoder."""
    pictures = [sample_picture(seed).image for seed in range(count)]
    x = images_to_tensor(torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))).to(vae.device)
    back = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
    arrays = back.permute(0, 2, 3, 1).cpu().numpy()
    return tile_images([*pictures, *(Image.fromarray(a) for a in arrays)], columns=count)


def draw_segmentations(segmenter: WorldSegmenter, count: int = 8) -> Image.Image:
    """Draw held-out pictures above the regions that the segmenter finds in them."""
    pictures = [sample_picture(seed).image for seed in range(count)]
    found = [{str(i): region for i, region in enumerate(segmenter.find_regions(p))} for p in pictures]
    return tile_images([*pictures, *(overlay_masks(p, f) for p, f in zip(pictures, found, strict=True))], columns=count)


def draw_nearest_figures(judge: Judge, queries: int = 8, candidates: int = 150, nearest: int = 3) -> Image.Image:
    """Draw held-out figures above the nearest figures of other pictures by the judge's embedding."""
    pictures = [sample_picture(seed) for seed in range(queries + candidates)]
    figures = [(p.image, p.figures[0].visible_mask.astype(np.float32)) for p in pictures]
    embeddings = judge.embed(figures)
    order = (embeddings[:queries] @ embeddings[queries:].T).topk(nearest, dim=1).indices + queries
    rows = [range(queries), *order.T.tolist()]
    return tile_images(
        [Image.fromarray(crop_figure(*figures[i])[..., :3]) for row in rows for i in row], columns=queries
    )


def draw_concept(model: Model, folder: Path, name: str) -> Image.Image:
    """Draw reference pictures of a concept above images generated with it."""
    concept = load_concept(folder / f"{name}.safetensors", name, name)
    prompts = [f"a {name} {concept.class_name} {place}" for place in ("in a park", "on a street", "in the snow")]
    references = [Image.open(folder / name / f"{i:02d}.png") for i in range(len(prompts))]
    return tile_images([*references, *sample_images(model, prompts, adapter=concept.adapter)], columns=len(prompts))


def tile_images(images: Sequence[Image.Image], columns: int = 8, tile_px: int = 192) -> Image.Image:
    """Arrange images in rows, without gaps."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * tile_px))
    for i, image in enumerate(images):
        tile = image.resize((tile_px, tile_px), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * tile_px, i // columns * tile_px))
    return sheet
