"""Compare one adapter per row in one UNet call: costars, peft's mixed batch, and one call per adapter.

Prints the median time of a call, its quartiles, and its ratio to costars, all measured in one run; "costars again"
shows how far two measurements of one thing are apart:

    python bench/adapters.py [--rounds 10] [--concepts 2 4] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from costars import open_studio
from costars.model.lora import one_adapter_per_row
from costars.model.model import Model
from costars.model.predict import Conditioning, predict_noise
from costars.types import Concept

NAMES = ("ana", "bo", "cleo", "dan")


@contextmanager
def mixed_batch(unet: Any, names: list[str]) -> Iterator[None]:
    """Pass each row's adapter to every LoRA layer, as peft's mixed batches do."""

    def add_names(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "adapter_names": names}

    layers = [m for m in unet.modules() if isinstance(m, LoraLayer)]
    handles = [layer.register_forward_pre_hook(add_names, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def load_into_diffusers(unet: Any, concept: Concept) -> None:
    """Load a concept's UNet layers into diffusers as peft layers."""
    state = {}
    for path, entry in concept.adapter.items():
        if path.startswith("unet."):
            state[f"{path.removeprefix('unet.')}.lora_A.weight"] = entry.down
            state[f"{path.removeprefix('unet.')}.lora_B.weight"] = entry.up
    unet.load_lora_adapter(state, prefix=None, adapter_name=concept.name)


def measure_times(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median and the quartiles of the seconds of each function, called in turn after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return {name: summarize(values) for name, values in seconds.items()}


def summarize(seconds: list[float]) -> dict[str, float]:
    """The median and the quartiles of a call's times."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"seconds": middle, "low": low, "high": high}


@torch.no_grad()
def compare(model: Model, concepts: list[Concept], rounds: int) -> dict[str, dict[str, float]]:
    """Print the table for one number of concepts, with two rows each, and return it."""
    k = len(concepts)
    size = (2 * k, model.info.latent_channels, *model.latent_size(model.info.size_px))
    latents, text = torch.randn(size), model.encode_text("a woman in a park")
    rows = [c.name for c in concepts for _ in range(2)]

    def call(start: int = 0, stop: int = 2 * k) -> torch.Tensor:
        count = stop - start
        tokens, pooled = text.tokens.expand(count, -1, -1), text.pooled.expand(count, -1)
        own = Conditioning(tokens, pooled, model.size_ids(model.info.size_px))
        return predict_noise(model.unet, latents[start:stop], torch.tensor(500), own)

    own = {c.name: c.adapter for c in concepts}
    with one_adapter_per_row(model.unet, "unet.", own) as adapters, adapters.on(rows):
        ours = measure_times({"costars": call, "costars again": call}, rounds)
        expected = call()
    for concept in concepts:
        load_into_diffusers(model.unet, concept)
    with mixed_batch(model.unet, rows):
        peft = measure_times({"peft mixed batch": call}, rounds)
        assert torch.allclose(call(), expected, atol=1e-4)

    def one_by_one() -> None:
        for i, concept in enumerate(concepts):
            model.unet.set_adapters([concept.name])
            call(2 * i, 2 * i + 2)

    each = measure_times({"one call per adapter": one_by_one}, rounds)
    model.unet.unload_lora()
    table = {**ours, **peft, **each, **measure_times({"no adapter": call}, rounds)}
    for name, times in table.items():
        times["ratio"] = times["seconds"] / ours["costars"]["seconds"]
        middle, low, high = (1000 * times[key] for key in ("seconds", "low", "high"))
        print(f"k={k}  {name:<22} {middle:8.1f} ms ({low:.1f} to {high:.1f})   ratio {times['ratio']:5.2f}")
    return table


def main() -> None:
    """Print a table for each number of concepts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--concepts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path, help="write the tables as JSON")
    options = parser.parse_args()
    studio = open_studio("cpu")
    model, tables = studio.model("builtin"), {}
    for k in options.concepts:
        concepts = [studio.store.load(f"builtin/{name}") for name in NAMES[:k]]
        tables[f"k={k}"] = compare(model, concepts, options.rounds)
    if options.out:
        run = {"rounds": options.rounds, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
        options.out.write_text(json.dumps({**run, "measured": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
