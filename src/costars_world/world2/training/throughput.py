"""How fast the base trains at several batch sizes: for choosing one before a long run."""

from __future__ import annotations

import time

import torch

from costars_world.world2.training.base_training import BaseRun, training_loss
from costars_world.world2.training.batches import batch_size
from costars_world.world2.training.latents import LatentCache
from costars_world.world2.training.plan import SHAPES

BATCHES = (128, 256, 512, 1024)  # square pictures
STEPS = 6  # timed, after two to warm up


def measure_throughput(run: BaseRun, cache: LatentCache) -> dict[str, float]:
    """Samples per second of whole training steps, at a learning rate of zero, by shape and batch."""
    out: dict[str, float] = {}
    for shape in (0, 2):
        if cache.shapes[shape] is None:
            continue
        for batch in BATCHES if run.empty.device.type == "cuda" else (2,):
            try:
                out["{}x{} batch {}".format(*SHAPES[shape], batch)] = round(_rate(run, cache, shape, batch), 1)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
    return out


def _rate(run: BaseRun, cache: LatentCache, shape: int, batch: int) -> float:
    for i in range(2 + STEPS):
        if i == 2:
            _wait(run.empty.device)
            began = time.monotonic()
        training_loss(run, cache, shape, 0.0, batch)
        run.training.step(1.0)
    _wait(run.empty.device)
    return STEPS * batch_size(batch, shape) / (time.monotonic() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
