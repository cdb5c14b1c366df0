"""The process that trains segmenter and judge, then the decoder."""

from __future__ import annotations

import json
import traceback
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from costars_world.world2.training.batches import Rendered
from costars_world.world2.training.clock import Span
from costars_world.world2.training.context import Context
from costars_world.world2.training.export import half_state, save_whole
from costars_world.world2.training.files import NETS, VAE
from costars_world.world2.training.judge import build_judge
from costars_world.world2.training.judge_training import JudgeRecipe, measure_judge, train_judge
from costars_world.world2.training.optimizer import compute_type
from costars_world.world2.training.progress import Printer
from costars_world.world2.training.segmenter import SegmenterNet
from costars_world.world2.training.segmenter_training import SegmenterRecipe, measure_segmenter, train_segmenter

LEAST_SHARE = 0.05  # of the run, however late the process starts


def run_nets(context: Context) -> None:
    """Train segmenter and judge one after the other, write them, train the decoder, then measure both nets."""
    options, clock = context.options, context.clock
    rendered = Rendered(context.plan, context.store, with_truth=True)
    there = rendered.wait(options.least_pictures // 2, clock, clock.shares.segmenter / 2)
    context.log("nets", f"starts with {there} pictures")
    state: dict[str, Tensor] = {}
    table = json.dumps({name: {k: list(v) for k, v in of.items()} for name, of in context.world.attributes.items()})
    measures = []
    for part in (_segmenter, _judge):
        try:
            found, measure = part(context, rendered)
            state |= found
            measures.append(measure)
            save_whole(options.out / NETS, state, {"attributes": table})
        except Exception:  # the other net must not be lost
            context.log("nets", f"failed\n{traceback.format_exc()}")
    if context.wait_for(options.work / VAE, clock.shares.decoder):
        # Imported late: diffusers takes seconds, and the nets do without it.
        import_module(f"{__package__}.vae_process").run_decoder(context)
    for measure in measures:
        measure()


def _segmenter(context: Context, rendered: Rendered) -> tuple[dict[str, Tensor], Any]:
    device, clock = torch.device(context.options.device), context.clock
    net, span = (
        SegmenterNet(len(context.world.classes)),
        Span.from_now(context.clock, clock.shares.segmenter, LEAST_SHARE),
    )
    printer = Printer(context, "segmenter")
    recipe = SegmenterRecipe(batch=2) if context.options.tiny else SegmenterRecipe()
    seen = train_segmenter(net, rendered, recipe, span, device, compute_type(device), printer)
    context.report("segmenter", seen=seen, seconds=clock.elapsed() - span.start)

    def measure() -> None:
        context.report("segmenter", **measure_segmenter(net, rendered, context.world))

    return half_state(net, "segmenter."), measure


def _judge(context: Context, rendered: Rendered) -> tuple[dict[str, Tensor], Any]:
    device, clock = torch.device(context.options.device), context.clock
    net, span = build_judge(context.world.attributes), Span.from_now(clock, clock.shares.judge, LEAST_SHARE)
    identities, dtype = len(context.casting.pool), compute_type(device)
    printer = Printer(context, "judge")
    recipe = JudgeRecipe(batch=16) if context.options.tiny else JudgeRecipe()
    seen = train_judge(net, rendered, context.world, identities, recipe, span, device, dtype, printer)
    context.report("judge", seen=seen, seconds=clock.elapsed() - span.start)

    def measure() -> None:
        context.report("judge", **measure_judge(net, rendered, context.world, context.options.line_up))

    return half_state(net, "judge."), measure
