"""python -m costars_world.world2.training: trains World 2 in one run, and collects its files."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from costars_world.world2.training.clock import Clock, Shares
from costars_world.world2.training.context import Options, free_cores
from costars_world.world2.training.plan import Counts
from costars_world.world2.training.supervisor import smoke_shares, supervise
from costars_world.world2.training.world import DEFAULT, World, load_world

TINY = Counts(line_up=3, portraits=1, held_out=8, truth=16, plain=8)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m costars_world.world2.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="render and train everything"))
    gather = commands.add_parser("collect", help="write a folder in SDXL's format from the files of a run")
    gather.add_argument("files", type=Path)
    gather.add_argument("weights", type=Path)
    for command in commands.choices.values():
        command.add_argument("--renderer", default=DEFAULT, help="module with sample_scene")
    options = parser.parse_args(arguments)
    world = load_world(options.renderer)
    if options.command == "collect":
        import_module(f"{__package__}.collect").collect(options.files, options.weights, world)
        return 0
    return 0 if _train(options, world, began) else 1


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--work", type=Path, help="where processes leave files for each other; a new folder if absent")
    parser.add_argument("--seconds", type=float, default=480.0, help="wall clock of everything")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch", type=int, default=256, help="square pictures in a batch of the base")
    parser.add_argument("--learning-rate", type=float, help="of the base; by the batch if absent")
    parser.add_argument("--pictures", type=int, default=Counts().plain, help="without truth, at most")
    parser.add_argument("--workers", type=int, help="rendering processes; all cores but three if absent")
    parser.add_argument("--seed-offset", type=int, default=0, help="other training pictures than those from 0 on")
    parser.add_argument("--init", type=Path, help="go on from the files of an earlier run")
    parser.add_argument("--keep", type=Path, help="also keep a state there that --init goes on from exactly")
    parser.add_argument("--smoke", action="store_true", help="all phases in about a minute, with speeds")
    parser.add_argument("--tiny", action="store_true", help="a few pictures, for tests")
    parser.add_argument("--no-compile", action="store_true", help="never compile the UNet's blocks")


def _train(options: argparse.Namespace, world: World, began: float) -> bool:
    counts = TINY if options.tiny else Counts(plain=options.pictures)
    shares = smoke_shares() if options.smoke else Shares()
    if options.tiny:
        shares = replace(shares, base=0.6)  # a CPU takes long to measure and draw
    if options.init is not None:
        shares = Shares(vae=0.0, segmenter=0.0, judge=0.0, decoder=0.0, base=shares.base)
    run = Options(
        out=options.out,
        work=options.work or Path(tempfile.mkdtemp(prefix="world2-")),
        device=options.device,
        init=options.init,
        keep=options.keep,
        batch=options.batch,
        learning_rate=options.learning_rate,
        compile=not options.no_compile,
        smoke=options.smoke,
        tiny=options.tiny,
        line_up=counts.line_up,
        least_pictures=20 if options.tiny else Options.least_pictures,
        first_pictures=20 if options.tiny else Options.first_pictures,
        threads=1 if options.tiny else Options.threads,
    )
    clock = Clock(began, options.seconds, shares)
    return supervise(world, counts, run, clock, options.workers or free_cores(3), options.seed_offset)


if __name__ == "__main__":
    sys.exit(main())
