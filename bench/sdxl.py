"""Two stages at true size on random weights, which are as fast as trained ones.

Seconds and peak memory of 50 steps for k concepts, by the time of single steps, against (a) the same
number of UNet rows through diffusers' own attention at the batch where a row is cheapest, and (b) the
official OMG schedule: four base rows a step in both stages, attention probabilities written out, one
adapter after the other. All in one run, in turn:

    python bench/sdxl.py [--family sdxl|sd15] [--size 1024] [--k 1 2 3 5] [--tiny] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from costars.model.adapters import one_adapter_per_row
from costars.model.load import CONFIGS
from costars.model.model import Facts, Model
from costars.sample.attention import attention_layers
from costars.sample.blend import blended, with_rest
from costars.sample.denoise import denoise, sampler
from costars.sample.rules import BorrowLayout
from costars.types import Adapter, LowRank, Text
from costars.types import Path as DenoisingPath

STEPS, START = 50, 16  # OMG's code
RANK = 16
TINY = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8, "attention_head_dim": (2, 4, 4)}
TINY |= {"cross_attention_dim": 64, "transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 16}
TINY |= {"projection_class_embeddings_input_dim": 128}


def build(family: str, tiny: bool, size: int, device: torch.device, dtype: torch.dtype) -> Model:
    """A model of this family with weights drawn at random; it has no text encoders, for texts are drawn too."""
    config = {**UNet2DConditionModel.load_config(CONFIGS / family / "unet"), **(TINY if tiny else {})}
    with device:
        unet = UNet2DConditionModel.from_config(config).to(dtype).eval().requires_grad_(False)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / family / "vae")).to(dtype)
    unet.set_attn_processor(AttnProcessor2_0())
    facts = Facts("random", family, "", (size, size), 8, 4, "attention")
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")
    return Model(unet, vae.eval().requires_grad_(False), (), scheduler, facts, device, dtype)


def text(model: Model) -> Text:
    """A text of 77 tokens."""
    width = int(model.unet.config["cross_attention_dim"])
    pooled = None
    if model.facts.family == "sdxl":
        sizes = 6 * int(model.unet.config["addition_time_embed_dim"])
        pooled = torch.randn(1, int(model.unet.config["projection_class_embeddings_input_dim"]) - sizes)
        pooled = pooled.to(model.device, model.dtype)
    return Text("", torch.randn(1, 77, width).to(model.device, model.dtype), pooled)


def lora(model: Model) -> Adapter:
    """An adapter on every attention layer."""
    out = {}
    for name, layer in attention_layers(model.unet):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            weight = layer.get_submodule(part).weight
            down, up = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
            out[f"unet.{name}.{part}"] = LowRank(0.01 * down, 0.01 * up)
    return out


def seconds(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median seconds of a call, after one that warms up."""
    run()
    took = []
    for _ in range(rounds):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _paths(model: Model, k: int, latents: torch.Tensor | None) -> list[DenoisingPath]:
    one, empty = text(model), text(model)
    paths = [] if latents is None else [DenoisingPath("layout", one, replay=latents)]
    return [
        *paths,
        DenoisingPath("global", one, empty),
        *(DenoisingPath(str(i), text(model), empty, adapter=str(i)) for i in range(k)),
    ]


@torch.no_grad()
def stage_step(model: Model, k: int, stage: int, rounds: int) -> float:
    """Seconds of one step of a stage as costars takes it."""
    size = model.facts.size_px
    h, w = model.latent_size(size)
    latents = torch.randn(STEPS + 1, 4, h, w).to(model.device, model.dtype)
    paths = _paths(model, k if stage == 2 else 0, latents if stage == 2 else None)
    shares = torch.zeros(k, h, w)
    for i in range(k):
        shares[i, :, i * w // k : (i + 1) * w // k] = 1
    everyone = with_rest(shares).to(model.device)
    cells = (size[0] // 32) * (size[1] // 32)
    adapters = {str(i): lora(model) for i in range(k)} if stage == 2 else {}
    steps = sampler(model.scheduler, STEPS, model.device, size, 5.0, start=START)
    with one_adapter_per_row(model.unet, "unet.", adapters) as rows:
        endless = _endless(model, paths, steps, rows, everyone, cells, stage)
        return seconds(lambda: next(endless), rounds, model.device)


def _endless(model: Model, paths: Any, steps: Any, rows: Any, shares: Any, cells: int, stage: int) -> Iterator[object]:
    while True:
        latent = torch.randn(1, 4, *shares.shape[-2:]).to(model.device, model.dtype)
        rule = BorrowLayout(0, 1, 1.0, 0.4, cells) if stage == 2 else None
        combine = {"combine": lambda noise: blended(noise, shares)} if stage == 2 else {}
        yield from denoise(model, latent, paths, steps, rule=rule, adapters=rows, **combine)


@torch.no_grad()
def call(model: Model, rows: int, rounds: int) -> float:
    """Seconds of one stock UNet call."""
    h, w = model.latent_size(model.facts.size_px)
    sample = torch.randn(rows, 4, h, w).to(model.device, model.dtype)
    own = text(model)
    added = None
    if own.pooled is not None:
        size_ids = model.size_ids(model.facts.size_px).expand(rows, -1)
        added = {"text_embeds": own.pooled.expand(rows, -1), "time_ids": size_ids}
    tokens, t = own.tokens.expand(rows, -1, -1), torch.tensor(500, device=model.device)
    return seconds(lambda: model.unet(sample, t, tokens, added_cond_kwargs=added).sample, rounds, model.device)


def official(model: Model, k: int, rounds: int) -> float:
    """Seconds of the official schedule: 2 x 50 calls of four base rows, then k of two for each of 34 steps."""
    model.unet.set_attn_processor(AttnProcessor())  # probabilities written out in every layer, edited or not
    base = call(model, 4, rounds)
    model.unet.set_attn_processor(AttnProcessor2_0())  # the official concept pipeline uses xFormers
    config = LoraConfig(r=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    for i in range(k):
        inject_adapter_in_model(config, model.unet, adapter_name=str(i))
    layers = [module for module in model.unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.to(model.device, model.dtype)
        layer.requires_grad_(False)

    def switched() -> None:
        for i in range(k):
            for layer in layers:
                layer.set_adapter(str(i))
            run()

    run = _two_rows(model)
    concepts = seconds(switched, rounds, model.device)
    for name, module in list(model.unet.named_modules()):
        if isinstance(module, LoraLayer):
            parent = model.unet.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    del model.unet.peft_config
    return 2 * STEPS * base + (STEPS - START) * concepts


def _two_rows(model: Model) -> Callable[[], object]:
    h, w = model.latent_size(model.facts.size_px)
    own, sample = text(model), torch.randn(2, 4, h, w).to(model.device, model.dtype)
    added = None
    if own.pooled is not None:
        size_ids = model.size_ids(model.facts.size_px).expand(2, -1)
        added = {"text_embeds": own.pooled.expand(2, -1), "time_ids": size_ids}
    tokens, t = own.tokens.expand(2, -1, -1), torch.tensor(500, device=model.device)

    def run() -> object:
        with torch.no_grad():
            return model.unet(sample, t, tokens, added_cond_kwargs=added).sample

    return run


def measured(model: Model, ks: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """One row of the table for each k."""
    best = min(call(model, rows, rounds) / rows for rows in (1, 2, 4, 8))
    for k in ks:
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        first, second = stage_step(model, k, 1, rounds), stage_step(model, k, 2, rounds)
        peak = torch.cuda.max_memory_allocated(model.device) / 2**30 if model.device.type == "cuda" else None
        rows = 2 * STEPS + (STEPS - START) * (3 + 2 * k)
        ours = STEPS * first + (STEPS - START) * second
        theirs = official(model, k, rounds)
        yield {
            "k": k,
            "rows": rows,
            "seconds": {"stage1": STEPS * first, "stage2": (STEPS - START) * second, "official": theirs},
            "per_row_over_diffusers": ours / rows / best,
            "times_faster_than_official": theirs / ours,
            "peak_gib": peak,
        }


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sdxl", "sd15"), default="sdxl")
    parser.add_argument("--size", type=int, help="px a side, default: the family's own, 128 with --tiny")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small UNet of the same build, for a CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = options.tiny or device.type == "cpu"
    if tiny and not options.tiny:
        parser.error("true size needs a CUDA device, and torch sees none; use --tiny")
    if tiny and options.family != "sdxl":
        parser.error("--tiny is built as SDXL is; leave --family out")
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = options.size or (128 if tiny else {"sdxl": 1024, "sd15": 512}[options.family])
    model = build(options.family, tiny, size, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.family}{' (tiny)' if tiny else ''}, {size} px, {dtype}, {name}")
    table = []
    for row in measured(model, options.k, options.rounds):
        table.append(row)
        memory = "" if row["peak_gib"] is None else f", peak {row['peak_gib']:.1f} GiB"
        print(
            f"k={row['k']}: {row['rows']} rows, stage 1 {row['seconds']['stage1']:.2f} s, stage 2 "
            f"{row['seconds']['stage2']:.2f} s; a row costs {row['per_row_over_diffusers']:.2f} x diffusers' best; "
            f"{row['times_faster_than_official']:.2f} x as fast as the official schedule{memory}",
            flush=True,
        )
    if options.out:
        facts = {"family": options.family, "tiny": tiny, "size_px": size, "dtype": str(dtype), "device": name}
        options.out.write_text(json.dumps({**facts, "torch": torch.__version__, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
