"""Train the built-in models from rendered pictures only."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import costars
from costars_world.judge.judge import JUDGE_WEIGHTS
from costars_world.training.context import TrainingContext, UnfinishedError
from costars_world.training.parts import PARTS

WEIGHTS = Path(costars.__file__).parent / "builtin" / "weights"


def _parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m costars_world.training", description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "all"), help="which model to train")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="time limit per part; continue with --resume")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    parser.add_argument(
        "--work", type=Path, default=Path("out/train"), help="folder for pictures, checkpoints and sample sheets"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="output folder for weights")
    parser.add_argument(
        "--judge-weights", type=Path, default=JUDGE_WEIGHTS.parent, help="output folder for the judge's weights"
    )
    parser.add_argument("--sheet-every", type=float, default=5.0, help="minutes between sample sheets")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; use --device cpu")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train one part, or all parts in order."""
    options = _parse_options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    context = TrainingContext(
        work=options.work,
        weights=options.weights,
        judge_weights=options.judge_weights,
        device=torch.device(options.device),
        minutes=options.minutes,
        resume=options.resume,
        sheet_every_s=60 * options.sheet_every,
        workers=os.cpu_count() or 1,
    )
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns) as progress:
        for part in PARTS if options.part == "all" else (options.part,):
            task = progress.add_task(part, total=None, text="")
            torch.manual_seed(0)  # for the initial weights of each part
            try:
                for status in PARTS[part](context):
                    progress.update(task, completed=status.step, total=status.total, text=status.text)
            except UnfinishedError as error:
                progress.stop()
                print(error)
                return


if __name__ == "__main__":
    main()
