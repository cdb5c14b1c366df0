"""The autoencoder: pictures of any shape to latents of 8 channels and an eighth of the size, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from costars_world.world2.training.batches import Rendered, batch_size, held_out_slots, pieces, to_pixels
from costars_world.world2.training.clock import Span
from costars_world.world2.training.optimizer import FlatTraining, Rates
from costars_world.world2.training.plan import SHAPES

LEAST_STD = 0.25  # of the deviation of all channels: a channel that says little is not blown up
LATENT_CHANNELS = 8  # as version 1: at an eighth of the size, 4 channels lose small eyes and patterns
DECODER_RATES = Rates(learning_rate=4e-4, warmup_steps=100, weight_decay=0.0, decay_share=0.8)
RATES = Rates(learning_rate=1.2e-3, warmup_steps=100, weight_decay=0.0, decay_share=0.45)


@dataclass(frozen=True)
class VaeRecipe:
    """Losses and rates of the autoencoder."""

    rates: Rates = RATES
    decoder_rates: Rates = DECODER_RATES
    batch: int = 40  # square pictures: small enough for thousands of steps, large enough to fill the GPU
    squared_weight: float = 4.0  # of the squared error beside the absolute one, as version 1: colours settle sooner
    edge_weight: float = 0.5  # of the absolute error of differences between neighbours, at full and half size:
    # the outlines and eyes of small faces are a small share of the pixels and a large one of the edges
    kl_weight: float = 2e-4  # per latent element; keeps latents near unit size and smooth


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder of 4 M parameters in SDXL's format."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        force_upcast=False,
    )
    _start_nearly_linear(vae)
    return vae


def _start_nearly_linear(vae: AutoencoderKL) -> None:
    """Residual branches start at zero, resampling near an isometry, posteriors narrow, as in version 1.

    From the usual initialisation the same loss takes about four times the steps.
    """
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif (
            isinstance(module, nn.Conv2d)
            and module.bias is not None
            and ("samplers" in name or name.endswith("conv_shortcut"))
        ):
            nn.init.orthogonal_(module.weight.view(len(module.weight), -1))
            nn.init.zeros_(module.bias)
            if "upsamplers" in name:
                module.weight.data.mul_(0.3)
                module.weight.data[:, :, 1, 1] += 0.7 * torch.eye(len(module.weight))
    nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -6.0)


def picture_loss(decoded: Tensor, target: Tensor, recipe: VaeRecipe) -> Tensor:
    """Absolute, squared and edge errors of (n, 3, h, w) pixels."""
    error = decoded.float() - target.float()
    loss = error.abs().mean() + recipe.squared_weight * error.square().mean()
    for scale in (error, avg_pool2d(error, 2)):
        across = (scale[..., :, 1:] - scale[..., :, :-1]).abs().mean()
        down = (scale[..., 1:, :] - scale[..., :-1, :]).abs().mean()
        loss = loss + recipe.edge_weight / 2 * (across + down)
    return loss


def _kl(posterior: DiagonalGaussianDistribution) -> Tensor:
    """Mean divergence of a latent element from the unit normal, in float32."""
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def train_vae(
    vae: AutoencoderKL,
    rendered: Rendered,
    recipe: VaeRecipe,
    span: Span,
    dtype: torch.dtype,
    *,
    decoder_only: bool = False,
    report: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> int:
    """Train until the span is over, all of it or the decoder alone; leaves the running mean in place as float32.

    Returns the number of pictures seen.
    """
    device = vae.device
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    rates = recipe.decoder_rates if decoder_only else recipe.rates
    training = FlatTraining(vae.train(), rates, dtype)
    rng, seen = np.random.default_rng(int(decoder_only)), 0
    while not span.over():
        shape, slots = rendered.draw(rng, recipe.batch)
        target = to_pixels(rendered.images(shape, slots).to(device, non_blocking=True), dtype)
        posterior = vae.encode(target).latent_dist
        noise = torch.randn_like(posterior.mean)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = picture_loss(decoded, target, recipe) + recipe.kl_weight * _kl(posterior)
        loss.backward()  # type: ignore[no-untyped-call]
        training.step(span.progress())
        seen += len(slots)
        report(training.step_count, loss)
    vae.float()
    training.put(vae)
    vae.requires_grad_(True).eval()
    return seen


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, rendered: Rendered, count: int = 256) -> dict[str, float]:
    """PSNR in dB of held-out pictures by shape, and the mean and deviation of their latents."""
    out: dict[str, float] = {}
    means = []
    for shape, slots in enumerate(held_out_slots(rendered.plan, rendered.store)):
        errors = []
        for part in pieces(slots[: batch_size(count, shape)], 32):
            target = to_pixels(rendered.images(shape, part).to(vae.device))
            mean = vae.encode(target).latent_dist.mean
            means.append(_by_channel(mean))
            decoded = vae.decode(mean).sample.clamp(-1, 1)
            errors.append((decoded - target).square().mean(dim=(1, 2, 3)) / 4)
        if errors:
            width, height = SHAPES[shape]
            out[f"psnr_{width}x{height}"] = float(-10 * torch.cat(errors).clamp_min(1e-8).log10().mean())
    latents = torch.cat(means, dim=1)
    out["latent_mean"], out["latent_std"] = float(latents.mean()), float(latents.std())
    return out


def _by_channel(latents: Tensor) -> Tensor:
    """(n, c, h, w) to (c, n h w)."""
    return latents.transpose(0, 1).flatten(1)


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, rendered: Rendered, count: int = 512) -> None:
    """Give every channel of the latents mean 0 and deviation 1, by its 1 x 1 convolutions.

    SDXL's format has one factor for all channels and no shift; folded into the weights, each has its own.
    """
    slots = rendered.slots[0][:count]
    means = []
    for part in pieces(slots, 32):
        means.append(_by_channel(vae.encode(to_pixels(rendered.images(0, part).to(vae.device))).latent_dist.mean))
    latents = torch.cat(means, dim=1)
    mean, std = latents.mean(dim=1), latents.std(dim=1)
    std = std.clamp_min(LEAST_STD * float(latents.std()))
    before, after, n = vae.quant_conv, vae.post_quant_conv, LATENT_CHANNELS
    before.weight[:n] /= std.view(-1, 1, 1, 1)
    before.bias[:n].sub_(mean).div_(std)
    before.bias[n:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)
