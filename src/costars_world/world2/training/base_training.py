"""Training the base on cached latents until its time is over, and its error on held-out pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from costars_world.world2.training.base import Base, BaseRecipe, Denoiser, Noise, errors, size_ids
from costars_world.world2.training.batches import Rendered, batch_size, held_out_slots, pieces
from costars_world.world2.training.clock import Span
from costars_world.world2.training.latents import LatentCache, encode
from costars_world.world2.training.optimizer import FlatTraining
from costars_world.world2.training.plan import SHAPES
from costars_world.world2.training.tokenizer import CaptionEncoder

UPDATE_S = 8.0  # how often newly rendered pictures are encoded
UPDATE_LIMIT = 16384  # at most so many at a time
CURVE_EVERY_S = 5.0  # between points of the loss curve
LEVELS = 10  # noise levels at which the held-out error is reported: the middles of ten equal parts


@dataclass
class BaseRun:
    """A base in training; curve holds (seconds, samples, loss) points."""

    base: Base
    recipe: BaseRecipe
    training: FlatTraining
    denoiser: nn.Module
    noise: Noise
    generator: torch.Generator
    empty: Tensor
    samples: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)


def start_run(
    base: Base, recipe: BaseRecipe, captions: CaptionEncoder, device: torch.device, dtype: torch.dtype
) -> BaseRun:
    """Move a base to the device and make it ready for training."""
    denoiser = Denoiser(base).to(device).train()
    training = FlatTraining(denoiser, recipe.rates, dtype)
    empty = torch.from_numpy(captions([""])[:, 0]).long().to(device)
    noise = Noise.of(base.scheduler, device)
    return BaseRun(base, recipe, training, denoiser, noise, torch.Generator(device).manual_seed(1), empty)


def training_loss(run: BaseRun, cache: LatentCache, shape: int, progress: float, square_batch: int) -> Tensor:
    """The weighted loss of one batch of a shape; backward has been called on it."""
    latents, ids = cache.draw(run.generator, square_batch, shape)
    count, device = len(latents), latents.device
    dropped = torch.rand((count, 1, 1), generator=run.generator, device=device) < run.recipe.drop_text
    ids = torch.where(dropped, run.empty, ids)
    # Spread evenly over the levels, so that every batch sees all of them: less noise in the gradient.
    places = torch.rand(count, generator=run.generator, device=device) + torch.arange(count, device=device)
    t = (places * (len(run.noise.alphas) / count)).long().clamp_max(len(run.noise.alphas) - 1)
    drawn = torch.randn(latents.shape, generator=run.generator, device=device)
    gamma = run.recipe.gamma if progress < run.recipe.shapes_share else None
    found = errors(run.denoiser, run.noise, latents, ids, size_ids(SHAPES[shape], device), t, drawn)
    loss = (found * run.noise.weights(t, gamma)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def train_base(
    run: BaseRun,
    cache: LatentCache,
    span: Span,
    square_batch: int,
    every: Callable[[BaseRun], None] = lambda run: None,
) -> None:
    """Take steps until the span is over; encodes new pictures now and then and calls every after each step."""
    rng = np.random.default_rng(2)
    updated = noted = span.clock.now()
    while not span.over():
        shape = cache.draw_shape(rng)
        loss = training_loss(run, cache, shape, span.progress(), square_batch)
        run.training.step(span.progress())
        run.samples += batch_size(square_batch, shape)
        now = span.clock.now()
        if now - noted >= CURVE_EVERY_S:
            run.curve.append((round(span.clock.elapsed(), 1), run.samples, round(float(loss), 5)))
            noted = now
        if now - updated >= UPDATE_S:
            cache.update(UPDATE_LIMIT)
            updated = span.clock.now()
        every(run)


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures of one shape as latents (n, c, h, w), token ids (n, 2, t) and size ids (1, 6)."""

    latents: Tensor
    ids: Tensor
    sizes: Tensor


def held_out(vae: AutoencoderKL, rendered: Rendered, captions: CaptionEncoder, most: int = 256) -> list[HeldOut]:
    """The held-out pictures of all shapes, encoded."""
    out = []
    for shape, slots in enumerate(held_out_slots(rendered.plan, rendered.store)):
        if not len(slots):
            continue
        kept = slots[:most]
        parts = [encode(vae, rendered.images(shape, p).to(vae.device), torch.float32)[0] for p in pieces(kept, 64)]
        ids = captions([rendered.store.caption(s) for s in kept]).transpose(1, 0, 2).copy()
        sizes = size_ids(SHAPES[shape], vae.device)
        out.append(HeldOut(torch.cat(parts), torch.from_numpy(ids).long().to(vae.device), sizes))
    return out


@torch.no_grad()
def held_out_error(run: BaseRun, sets: list[HeldOut]) -> dict[str, list[float]]:
    """Mean squared error of the prediction at ten noise levels, for each shape; the same noise every time."""
    levels = len(run.noise.alphas)
    out: dict[str, list[float]] = {}
    for data in sets:
        device = data.latents.device
        by_level = []
        for k in range(LEVELS):
            t = torch.full((len(data.latents),), int((k + 0.5) * levels / LEVELS), device=device)
            generator = torch.Generator(device).manual_seed(k)
            drawn = torch.randn(data.latents.shape, generator=generator, device=device)
            found = errors(run.denoiser, run.noise, data.latents, data.ids, data.sizes, t, drawn)
            by_level.append(round(float(found.mean()), 5))
        height, width = data.latents.shape[-2:]
        out[f"{8 * width}x{8 * height}"] = by_level
    return out
