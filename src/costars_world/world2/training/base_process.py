"""The process that trains the base, and saves, measures and draws it."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from costars_world.world2.training.base import Base, BaseRecipe, Denoiser, build_base, size_ids
from costars_world.world2.training.base_training import (
    BaseRun,
    HeldOut,
    held_out,
    held_out_error,
    start_run,
    train_base,
)
from costars_world.world2.training.batches import Rendered, batch_size
from costars_world.world2.training.clock import Span
from costars_world.world2.training.compiling import choose_compiled
from costars_world.world2.training.context import Context
from costars_world.world2.training.export import (
    half_state,
    part_of,
    read_state,
    read_unet,
    save_shards,
    save_whole,
)
from costars_world.world2.training.files import PARTS, SHEET, VAE
from costars_world.world2.training.latents import LatentCache
from costars_world.world2.training.optimizer import compute_type
from costars_world.world2.training.plan import SHAPES
from costars_world.world2.training.sampling import SheetRecipe, draw_sheet
from costars_world.world2.training.throughput import measure_throughput
from costars_world.world2.training.tokenizer import CaptionEncoder
from costars_world.world2.training.vae_process import read_vae

SAVE_EVERY_S = 45.0
PRINT_EVERY_S = 10.0
SHEET_QUALITY = 92  # as PNG the sheet would not fit beside the weights
STATE = "run.safetensors"  # float32 weights and moments in the folder that keeps a run
REFERENCE_BATCH = 256  # the learning rate grows with the root of the batch from here
VAE_GRACE = 0.25  # share of the time that the autoencoder may be late


@dataclass
class Saver:
    """Writes the running mean of the weights at intervals; shadow is a float32 copy of the model on the CPU."""

    context: Context
    shadow: Denoiser
    vae: AutoencoderKL
    saved: float = 0.0
    printed: float = 0.0

    def __call__(self, run: BaseRun) -> None:
        """After each step."""
        now = time.monotonic()
        if now - self.printed >= PRINT_EVERY_S:
            point = run.curve[-1] if run.curve else None
            self.context.log("base", f"step {run.training.step_count}, samples {run.samples}, curve {point}")
            self.printed = now
        if now - self.saved >= SAVE_EVERY_S:
            run.training.put(self.shadow)
            self.write(run)
            self.saved = time.monotonic()

    def write(self, run: BaseRun) -> None:
        """Write what the shadow holds, and the autoencoder."""
        out, facts = self.context.options.out, {"step": str(run.training.step_count), "samples": str(run.samples)}
        parts = self.shadow.parts
        save_shards(out, half_state(parts["unet"]), facts)
        rest = half_state(parts["text_encoder"], "text_encoder.") | half_state(
            parts["text_encoder_2"], "text_encoder_2."
        )
        words = {"words": " ".join(self.context.world.words)}  # a renderer that changes later may use others
        save_whole(out / PARTS, rest | half_state(self.vae, "vae."), facts | words)


def run_base(context: Context) -> None:
    """Build, compile, wait for the autoencoder, train, and leave everything behind."""
    options, clock = context.options, context.clock
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = False  # trying kernels out took 14 s for each shape on an H200
    recipe = scaled_recipe(BaseRecipe(), options.batch, options.learning_rate)
    base = build_base(context.world, options.work / "tokenizers", recipe)
    if options.init is not None:
        hand_on_vae(options.init, options.work)
        load_base(base, options.init)
    shadow = copy.deepcopy(Denoiser(base)).eval()
    captions = CaptionEncoder((base.tokenizer, base.tokenizer_2))
    run = start_run(base, recipe, captions, device, compute_type(device))
    if options.init is not None and (options.init / STATE).exists():
        run.training.load(read_state(options.init / STATE)[0])
    compiled = options.compile and compile_run(context, run)
    if not context.wait_for(options.work / VAE, clock.shares.vae + VAE_GRACE):
        raise RuntimeError("the autoencoder did not come in time; see its process's lines above")
    vae = read_vae(context)
    assert vae is not None
    rendered = Rendered(context.plan, context.store)
    rendered.wait(options.first_pictures, clock, clock.shares.vae + VAE_GRACE)
    cache = make_cache(context, vae.to(device), rendered, captions)
    context.report("base", device=device_name(device), compiled=compiled, first_pictures=cache.count)
    sets = held_out(vae, rendered, captions)
    if options.smoke:
        context.report("base", throughput=measure_throughput(run, cache))
    span, saver = Span.from_now(clock, clock.shares.base), Saver(context, shadow, copy.deepcopy(vae).cpu())
    train_base(run, cache, span, options.batch, saver)
    context.report("base", **_facts(run, span), pictures=cache.count, curve=run.curve)
    finish(context, run, saver, sets, rendered, captions)


def scaled_recipe(recipe: BaseRecipe, batch: int, learning_rate: float | None) -> BaseRecipe:
    """The recipe for a batch of this size, or with this learning rate."""
    rate = learning_rate or recipe.rates.learning_rate * (batch / REFERENCE_BATCH) ** 0.5
    return replace(recipe, batch=batch, rates=replace(recipe.rates, learning_rate=rate))


def load_base(base: Base, folder: Path) -> None:
    """Go on from the files that an earlier run left."""
    unet, _ = read_unet(folder)
    base.unet.load_state_dict(unet)
    parts, _ = read_state(folder / PARTS)
    base.text_encoder.load_state_dict(part_of(parts, "text_encoder."))
    base.text_encoder_2.load_state_dict(part_of(parts, "text_encoder_2."))


def hand_on_vae(files: Path, work: Path) -> None:
    """Put the autoencoder of an earlier run where this run looks for it: latents must stay what they were."""
    state, facts = read_state(files / PARTS)
    save_whole(work / VAE, part_of(state, "vae."), facts)


def make_cache(context: Context, vae: AutoencoderKL, rendered: Rendered, captions: CaptionEncoder) -> LatentCache:
    """All pictures so far as latents, by a copy of the autoencoder in the fast type."""
    half = torch.nn.Module.to(copy.deepcopy(vae), compute_type(vae.device))
    cache = LatentCache(half, rendered, captions, torch.float16)
    began = context.clock.elapsed()
    count = cache.update()
    context.log("base", f"encoded {count} pictures in {context.clock.elapsed() - began:.1f} s")
    return cache


def compile_run(context: Context, run: BaseRun) -> bool:
    """Compile the UNet's blocks while the autoencoder trains, if it pays; returns whether it does."""
    device = run.empty.device
    fixed: dict[int, tuple[Tensor, ...]] = {}

    def step(shape: int) -> Tensor:
        if shape not in fixed:
            width, height = SHAPES[shape]
            generator = torch.Generator(device).manual_seed(shape)
            count = batch_size(run.recipe.batch, shape)
            latents = torch.randn((count, 8, height // 8, width // 8), generator=generator, device=device)
            t = torch.randint(1000, (count,), generator=generator, device=device)
            ids = torch.randint(1, 300, (count, 2, 77), generator=generator, device=device)
            fixed[shape] = (latents, t, ids, size_ids(SHAPES[shape], device).expand(count, 6))
        latents, t, ids, sizes = fixed[shape]
        noisy = latents.to(run.training.weights.dtype)
        run.denoiser(noisy, t, ids, sizes).float().square().mean().backward()
        return run.training.gather().norm()

    seconds = context.clock.until(context.clock.shares.vae) - 2.0
    if seconds < 5:
        return False
    return choose_compiled(run.denoiser, step, range(len(SHAPES)), seconds, lambda line: context.log("compile", line))


def finish(
    context: Context,
    run: BaseRun,
    saver: Saver,
    sets: list[HeldOut],
    rendered: Rendered,
    captions: CaptionEncoder,
) -> None:
    """Save the better of the running mean and the last weights, with their held-out errors, and draw the sheet."""
    device, keep = run.empty.device, context.options.keep
    newest = read_vae(context)
    saver.vae = newest if newest is not None else saver.vae
    run.training.put(saver.shadow)
    saver.write(run)
    if keep is not None:
        save_whole(keep / STATE, run.training.state(), {"step": str(run.training.step_count)})
    found = {}
    for name, average in (("last", False), ("average", True)):
        run.training.put(saver.shadow, average=average)
        found[name] = held_out_error(replace(run, denoiser=saver.shadow.to(device)), sets)
        saver.shadow.cpu()
    average = _mean(found["average"]) <= _mean(found["last"])
    context.report("base", held_out=found, kept="average" if average else "last")
    if not average:
        run.training.put(saver.shadow, average=False)
        saver.write(run)
    evaluated = replace(run, denoiser=saver.shadow.to(device))
    recipe = SheetRecipe(2, 1, 2, (1.5,)) if context.options.tiny else SheetRecipe()
    sheet = draw_sheet(evaluated, copy.deepcopy(saver.vae).to(device), rendered, captions, recipe)
    sheet.save(context.options.out / SHEET, quality=SHEET_QUALITY)
    context.log("base", f"sheet of {sheet.size}")


def _mean(by_shape: dict[str, list[float]]) -> float:
    values = [v for levels in by_shape.values() for v in levels]
    return sum(values) / max(1, len(values))


def _facts(run: BaseRun, span: Span) -> dict[str, float]:
    seconds = min(span.clock.elapsed(), span.end) - span.start
    return {
        "parameters": sum(p.numel() for p in run.base.unet.parameters()),
        "steps": run.training.step_count,
        "samples": run.samples,
        "seconds": seconds,
        "per_second": run.samples / max(1e-3, seconds),
        "batch": run.recipe.batch,
        "learning_rate": run.recipe.rates.learning_rate,
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
