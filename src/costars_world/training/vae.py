"""The autoencoder: 128 x 128 px images to 16 x 16 latents with 8 channels, and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from costars_world.training import loop
from costars_world.training.dataset import RenderedDataset

RECIPE = loop.Recipe(
    steps=9000, batch_size=8, learning_rate=1e-3, warmup_steps=60, decay_share=0.35, ema_decay=0.998, weight_decay=0.0
)
# Then the decoder alone trains on whole pictures, so that its group norm statistics and colours fit them.
WHOLE_RECIPE = loop.Recipe(
    steps=260, batch_size=8, learning_rate=5e-4, warmup_steps=20, decay_share=0.6, weight_decay=0.0
)
CROP_PX = 64  # crops allow four times the steps in the same time; figures are larger than a crop
MSE_WEIGHT = 4.0  # relative to the absolute error; colours converge sooner
KL_WEIGHT = 3e-4  # per latent element; keeps latents smooth and near unit scale


def build() -> AutoencoderKL:
    """Build an untrained autoencoder of 4 M parameters in SDXL's format."""
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
    _initialize_near_linear(vae)
    return vae


def _initialize_near_linear(vae: AutoencoderKL) -> None:
    """Initialise residual branches to zero, resampling near an isometry, and posteriors narrow.

    With the default initialisation the same loss takes about four times the steps.
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


def images_to_tensor(images: Tensor) -> Tensor:
    """Convert images (n, h, w, 3) uint8 to (n, 3, h, w) float in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Return mean absolute error plus weighted mean squared error of the pixels."""
    error = decoded.float() - target
    return error.abs().mean() + MSE_WEIGHT * error.square().mean()


def crop_randomly(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop a random square of CROP_PX from each image, aligned to latent cells."""
    cells = (images.shape[-1] - CROP_PX) // 8 + 1
    corners = torch.randint(cells, (len(images), 2), generator=generator) * 8
    return torch.stack(
        [x[:, t : t + CROP_PX, s : s + CROP_PX] for x, (t, s) in zip(images, corners.tolist(), strict=True)]
    )


def train(
    vae: AutoencoderKL, data: RenderedDataset, options: loop.RunOptions, *, decoder_only: bool = False
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train the autoencoder on crops or, with decoder_only, its decoder on whole pictures with fixed latents."""
    device, batch_size = options.device, options.recipe.batch_size
    vae.to(device).train()
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    run = loop.start(vae, options)
    images = torch.from_numpy(data.images)

    def compute_loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch_size,), generator=generator)
        whole = images_to_tensor(images[index])
        target = (whole if decoder_only else crop_randomly(whole, generator)).to(device)
        posterior = vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(decoded, target) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    for progress in loop.train(run, options, compute_loss):
        yield run, progress
