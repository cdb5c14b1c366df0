"""Time both stages at full size on random weights, which are as fast as trained ones.

Measures seconds and peak memory of both stages with k concepts, against (a) diffusers' own pipeline for the same
number of UNet rows at the batch where a row is cheapest, and (b) the official OMG schedule: four base rows per step in
both stages, materialised attention probabilities, one adapter after the other, by the time of its calls. Steps are
timed without the first one; seconds of a whole picture are those of one step times 50. Last, the error of the latents
in half precision against float32. All in one run:

    python bench/sdxl.py [--family sdxl|sd15] [--size 1024] [--k 1 2 3 5] [--dtype bfloat16 float16]
                         [--steps 15] [--rounds 3] [--deadline SECONDS] [--tiny] [--out FILE.json]

The file is written after every measurement, so that an interrupted run leaves what it has. After the deadline no
measurement starts; the report names those that were skipped.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from baselines import measure_official_calls, measure_pipeline
from checkpoint import (
    build_model,
    build_modules,
    describe_run,
    format_heading,
    parse_options,
    save_checkpoint,
    save_loras,
    save_masks,
)
from diffusers.utils import logging
from precision import measure_latent_errors
from sdxl_report import Report
from timing import StageRun, measure_ceilings, run_stage, time_call
from torch import Tensor

from costars import Scene, open_studio
from costars.catalog import load_method
from costars.model.hub import Source
from costars.model.model import Model
from costars.model.offload import TIERS
from costars.resolved_scene import ResolvedScene
from costars.segment.match_cast import match_cast
from costars.segment.region_checks import RegionLimits
from costars.studio import DTYPES
from costars.types import Layout, Plan

STEPS, START = 50, 16  # OMG's code
STAGE_STEPS = {"layout": STEPS, "personalise": STEPS - START}
WARM_UP_STEPS, PRECISION_STEPS = 4, 15  # of a picture, at most


def make_scene(folder: Path, k: int, size_px: int, steps: int) -> Scene:
    """k concepts side by side, each with its own LoRA and a given mask."""
    masks = save_masks(folder, k, size_px)
    names = [f"c{i}" for i in range(k)]
    cast = {
        name: {"concept": str(folder / f"{i}.safetensors"), "class_name": "man", "where": str(mask)}
        for i, (name, mask) in enumerate(zip(names, masks, strict=True))
    }
    prompt = " and ".join(f"{{{name}}}" for name in names) + " in a park"
    fields = {"prompt": prompt, "cast": cast, "model": str(folder), "steps": steps, "start": START / STEPS}
    return Scene.model_validate(fields)


def resolve(model: Model, folder: Path, k: int, steps: int) -> ResolvedScene:
    """The scene with its LoRAs loaded; the studio already has the model in memory and loads none."""
    studio = open_studio(model.device.type)
    studio.models[Source(str(folder), folder)] = model
    return studio.resolve(make_scene(folder, k, model.info.size_px[0], steps))


def run_stages(resolved: ResolvedScene) -> dict[str, StageRun[Any]]:
    """Run both stages of the scene."""
    device, method = resolved.model.device, load_method(resolved.scene.method.name)
    assert method.draw_layout is not None and method.personalise is not None
    stages: dict[str, StageRun[Any]] = {"layout": run_stage(method.draw_layout(resolved), device)}
    layout: Layout = stages["layout"].result
    phrases = {name: member.phrase for name, member in resolved.members.items()}
    limits = RegionLimits(lowest_score=resolved.lowest_score)
    plan = Plan(resolved.scene, layout, match_cast(resolved.scene.cast, phrases, [], layout, limits=limits))
    return stages | {"personalise": run_stage(method.personalise(resolved, plan), device)}


def measure_concepts(
    model: Model, folder: Path, k: int, options: argparse.Namespace, baselines: dict[str, Any]
) -> dict[str, Any]:
    """One row of the table; baselines {"pipeline": ..., "official": ...} have None for what was not measured."""
    run_stages(resolve(model, folder, k, WARM_UP_STEPS))
    began = time.perf_counter()
    resolved = resolve(model, folder, k, options.steps)
    resolve_seconds = time.perf_counter() - began
    runs = [run_stages(resolved) for _ in range(options.rounds)]
    latent = runs[0]["personalise"].result
    row: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch."), "memory": model.offload.tier, "k": k}
    row["rows_per_step"] = rows = {"layout": 2, "personalise": 3 + 2 * k}
    row["rows"] = sum(rows[stage] * count for stage, count in STAGE_STEPS.items())
    row["timed_steps"] = {stage: runs[0][stage].timed_steps for stage in rows}
    row["all_step_seconds"] = {stage: [run[stage].step_seconds for run in runs] for stage in rows}
    row["step_seconds"] = {stage: statistics.median(each) for stage, each in row["all_step_seconds"].items()}
    row["other_seconds"] = {stage: statistics.median(run[stage].other_seconds for run in runs) for stage in rows}
    row["seconds"] = {stage: row["step_seconds"][stage] * count for stage, count in STAGE_STEPS.items()}
    decode_seconds = time_call(lambda: model.decode(latent), options.rounds, model.device)
    row["seconds"] |= {"resolve": resolve_seconds, "decode": decode_seconds}
    row["peak_gib"] = {stage: max((run[stage].peak_gib or 0.0) for run in runs) or None for stage in rows}
    _compare(row, baselines)
    return row


def _compare(row: dict[str, Any], baselines: dict[str, Any]) -> None:
    """Add the seconds of the baselines for the same pictures, and the ratios."""
    seconds = row["seconds"]
    ours = seconds["layout"] + seconds["personalise"]
    if pipeline := baselines.get("pipeline"):
        seconds["diffusers"] = row["rows"] * pipeline["row_seconds"]
        row["over_diffusers"] = ours / seconds["diffusers"]
        row["layout_over_pipeline_step"] = row["step_seconds"]["layout"] / pipeline["step_seconds"][1]
    if calls := baselines.get("official"):
        concept_calls = row["k"] * STAGE_STEPS["personalise"]
        seconds["official"] = 2 * STEPS * calls["base_call"] + concept_calls * calls["concept_call"]
        row["times_faster_than_official"] = seconds["official"] / ours


def measure_precision(folder: Path, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Errors of half-precision latents, with two concepts in a picture of half the size and few steps."""
    side, steps = max(64, options.size // 2), min(options.steps, PRECISION_STEPS)
    modules = build_modules(options.family, options.tiny, side, device, "float32")
    for module in modules.values():
        module.to(torch.bfloat16).to(torch.float32)  # so that all dtypes have the same weights

    def make_model(parts: dict[str, Any]) -> Model:
        return build_model(str(folder), options.family, side, parts, device)

    def draw(model: Model) -> tuple[Tensor, Tensor]:
        stages = run_stages(resolve(model, folder, 2, steps))
        return stages["layout"].result.latents[-1:], stages["personalise"].result

    errors = measure_latent_errors(modules, make_model, draw)
    return {"k": 2, "steps": steps, "size_px": side, "relative_error": errors}


def measure_all(report: Report, folder: Path, options: argparse.Namespace, device: torch.device) -> None:
    """Everything that was requested; the first dtype is measured completely before the next."""
    report.measure("ceilings", lambda: measure_ceilings(device))
    for dtype in options.dtype:
        for memory in options.memory:
            _measure_model(report, folder, options, device, dtype, memory)
        if dtype == options.dtype[0] and options.precision:
            report.measure("precision", lambda: measure_precision(folder, options, device))


def _measure_model(
    report: Report, folder: Path, options: argparse.Namespace, device: torch.device, dtype: str, memory: str
) -> None:
    models: list[Model] = []  # opened by the first measurement, and again by the next if that fails
    name = f"{dtype} {memory}"

    def model() -> Model:
        if not models:
            models.append(_open_model(folder, options, device, dtype, memory))
        return models[0]

    baselines: dict[str, Any] = {}
    if memory == "full":
        baselines["pipeline"] = report.measure(f"{name} diffusers", lambda: measure_pipeline(model()))
        baselines["official"] = report.measure(
            f"{name} official", lambda: measure_official_calls(model(), options.rounds)
        )
    for k in options.k:
        report.measure(f"{name} k={k}", lambda k=k: measure_concepts(model(), folder, k, options, baselines))
    models.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _open_model(folder: Path, options: argparse.Namespace, device: torch.device, dtype: str, memory: str) -> Model:
    """A model of this memory tier: built on the device if all of it stays there, otherwise saved and loaded."""
    if memory == "full":
        modules = build_modules(options.family, options.tiny, options.size, device, dtype)
        return build_model(str(folder), options.family, options.size, modules, device)
    save_checkpoint(folder, options.family, options.tiny, options.size, device, dtype)
    return open_studio(device.type, dtype, memory=memory).model(str(folder))


def main() -> None:
    """Measure, print and, if requested, write; exits with 1 if a measurement failed."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 3, 5], help="concepts in a picture")
    parser.add_argument("--steps", type=int, default=15, help="of stage 1; stage 2 takes the last 68 %% of them")
    parser.add_argument("--rounds", type=int, default=3, help="pictures, and calls; the median is reported")
    parser.add_argument("--memory", nargs="+", default=["full"], choices=TIERS)
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["bfloat16", "float16"] if on_gpu else ["float32"]
    )
    parser.add_argument("--no-precision", dest="precision", action="store_false", help="skip the errors of the latents")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds after which no measurement starts")
    options, device, _ = parse_options(parser)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    facts = describe_run(options, device, ", ".join(options.dtype))
    facts |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    facts |= {"steps": options.steps, "rounds": options.rounds, "seconds_are_for_steps": STAGE_STEPS}
    print(format_heading(facts), flush=True)
    report = Report(facts, options.out, options.deadline)
    with tempfile.TemporaryDirectory() as folder:
        sizes = build_modules(options.family, options.tiny, options.size, torch.device("meta"), "float32")
        save_loras(Path(folder), sizes["unet"], max(*options.k, 2))
        measure_all(report, Path(folder), options, device)
    report.write()
    report.print()
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
