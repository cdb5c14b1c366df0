"""The process that trains the autoencoder and hands it to the others."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from costars_world.world2.training.autoencoder import (
    VaeRecipe,
    build_vae,
    measure_vae,
    normalize_latents,
    train_vae,
)
from costars_world.world2.training.batches import Rendered
from costars_world.world2.training.clock import Span
from costars_world.world2.training.context import Context
from costars_world.world2.training.export import save_whole
from costars_world.world2.training.files import DECODER, VAE
from costars_world.world2.training.optimizer import compute_type
from costars_world.world2.training.progress import Printer

LEAST_SHARE = 0.1  # of the run, however late the process starts


def vae_recipe(context: Context) -> VaeRecipe:
    """The recipe, with few pictures at a time in tests."""
    return VaeRecipe(batch=2) if context.options.tiny else VaeRecipe()


def run_vae(context: Context) -> None:
    """Train the autoencoder until its share of the time is over, normalise its latents, write its weights."""
    options, clock = context.options, context.clock
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = False  # trying kernels out took 14 s for each shape on an H200
    rendered = Rendered(context.plan, context.store)
    vae = build_vae().to(device)
    there = rendered.wait(options.least_pictures, clock, clock.shares.vae / 2)
    context.log("vae", f"starts with {there} pictures")
    span = Span.from_now(clock, clock.shares.vae, LEAST_SHARE)
    seen = train_vae(vae, rendered, vae_recipe(context), span, compute_type(device), report=Printer(context, "vae"))
    normalize_latents(vae, rendered)
    write_vae(vae, context, VAE)
    seconds = clock.elapsed() - span.start
    context.report("vae", seen=seen, seconds=seconds, per_second=seen / seconds, **measure_vae(vae, rendered))


def run_decoder(context: Context) -> None:
    """Train the decoder alone beside the base: the latents stay as they are, faces get crisper."""
    options, clock = context.options, context.clock
    device = torch.device(options.device)
    vae = read_vae(context)
    if vae is None:
        return
    rendered = Rendered(context.plan, context.store)
    span = Span.from_now(clock, clock.shares.decoder)
    if clock.until(clock.shares.decoder) <= 0 or not rendered.refresh():
        return
    report = Printer(context, "decoder")
    vae = vae.to(device)
    seen = train_vae(vae, rendered, vae_recipe(context), span, compute_type(device), decoder_only=True, report=report)
    write_vae(vae, context, DECODER)
    context.report("decoder", seen=seen, seconds=clock.elapsed() - span.start, **measure_vae(vae, rendered))


def write_vae(vae: AutoencoderKL, context: Context, name: str) -> None:
    """Write an autoencoder's weights for the other processes."""
    state: dict[str, Tensor] = {k: v.detach().float().cpu().contiguous() for k, v in vae.state_dict().items()}
    save_whole(context.options.work / name, state, {})


def read_vae(context: Context) -> AutoencoderKL | None:
    """The trained autoencoder on the CPU; with the newer decoder, if there is one; None where there is none."""
    paths = [context.options.work / name for name in (DECODER, VAE)]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        return None
    vae = build_vae()
    vae.load_state_dict(load_file(path))
    vae.register_to_config(scaling_factor=1.0)
    return vae.eval()
