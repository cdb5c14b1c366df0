"""The autoencoder: 128 x 128 pictures to 16 x 16 latents of 8 channels, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from costars_world.training import loop
from costars_world.training.dataset import Corpus

RECIPE = loop.Recipe(
    steps=9000, batch=8, learning_rate=1e-3, warmup_steps=60, decay_share=0.35, ema_decay=0.998, weight_decay=0.0
)
# Afterwards the decoder alone sees whole pictures: its normalisation then fits them, its colours hold.
WHOLE_RECIPE = loop.Recipe(steps=260, batch=8, learning_rate=5e-4, warmup_steps=20, decay_share=0.6, weight_decay=0.0)
CROP_PX = 64  # training sees crops: four times the steps in the same time; figures are larger than a crop
SQUARED_WEIGHT = 4.0  # weight of the squared error beside the absolute one: colours settle sooner
KL_WEIGHT = 3e-4  # per latent element; keeps the latents near unit size and smooth


def build() -> AutoencoderKL:
    """An untrained autoencoder of 4 M parameters in SDXL's format."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=128,
        force_upcast=False,
    )
    _start_nearly_linear(vae)
    return vae


def _start_nearly_linear(vae: AutoencoderKL) -> None:
    """Residual branches start at zero, resampling near an isometry, posteriors narrow.

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
    nn.init.constant_(vae.quant_conv.bias[vae.config["latent_channels"] :], -6.0)


def pixels(images: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def picture_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error and mean squared error of the pixels."""
    error = decoded.float() - target
    return error.abs().mean() + SQUARED_WEIGHT * error.square().mean()


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random square of each picture, on the grid of latent cells."""
    cells = (images.shape[-1] - CROP_PX) // 8 + 1
    corners = torch.randint(cells, (len(images), 2), generator=generator) * 8
    return torch.stack(
        [x[:, t : t + CROP_PX, s : s + CROP_PX] for x, (t, s) in zip(images, corners.tolist(), strict=True)]
    )


def train(
    vae: AutoencoderKL,
    corpus: Corpus,
    checkpoint: Path,
    *,
    recipe: loop.Recipe,
    device: torch.device,
    minutes: float = math.inf,
    resume: bool = False,
    decoder_only: bool = False,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train the autoencoder on crops, or its decoder_only on whole pictures: the latents stay as they are."""
    vae.to(device).train()
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    run = loop.start(vae, recipe, checkpoint, resume)
    images = torch.from_numpy(corpus.images)

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(corpus), (recipe.batch,), generator=generator)
        whole = pixels(images[index])
        target = (whole if decoder_only else crops(whole, generator)).to(device)
        posterior = vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return picture_loss(decoded, target) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    for progress in loop.train(run, recipe, loss_of, device=device, checkpoint=checkpoint, minutes=minutes):
        yield run, progress
