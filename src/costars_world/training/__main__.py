"""python -m costars_world.training: trains the built-in world from nothing but the renderer."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import costars
from costars_world.judge.judge import JUDGE_WEIGHTS
from costars_world.training.context import UnfinishedError, Workshop
from costars_world.training.parts import PARTS

WEIGHTS = Path(costars.__file__).parent / "builtin" / "weights"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m costars_world.training", description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop each part after this long; resume later")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="pictures, checkpoints, sample sheets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the finished weights go")
    parser.add_argument("--judge-weights", type=Path, default=JUDGE_WEIGHTS.parent, help="where the judge's go")
    parser.add_argument("--sheet-every", type=float, default=5.0, help="minutes between sample sheets")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train one part or all of them, in the order in which they build on each other."""
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    shop = Workshop(
        options.work,
        options.weights,
        options.judge_weights,
        torch.device(options.device),
        options.minutes,
        options.resume,
        60 * options.sheet_every,
        os.cpu_count() or 1,
    )
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns) as progress:
        for part in PARTS if options.part == "all" else (options.part,):
            task = progress.add_task(part, total=None, said="")
            torch.manual_seed(0)  # for the first weights of each part
            try:
                for step, of, said in PARTS[part](shop):
                    progress.update(task, completed=step, total=of, said=said)
            except UnfinishedError as stop:
                progress.stop()
                print(stop)
                return


if __name__ == "__main__":
    main()
