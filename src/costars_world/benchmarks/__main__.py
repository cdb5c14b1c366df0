"""Measure the claims of the OMG paper on the built-in world."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from costars.errors import CostarsError
from costars.files.output_folder import check_output_folder
from costars.studio import open_studio
from costars_world.benchmarks import report
from costars_world.benchmarks.cases import BASELINES, BENCHMARKS, STEPS
from costars_world.benchmarks.provenance import describe_run
from costars_world.benchmarks.render_cache import RenderCache
from costars_world.benchmarks.score import load_scorer

# Layouts: of each kind of pair (identity, degradation), of each number (count), pictures of each concept (alone), or of
# all kinds together.
DEFAULT_SEEDS = {
    "identity": 6,
    "alone": 8,
    "weight": 20,
    "start": 8,
    "steps": 30,
    "ablation": 8,
    "degradation": 6,
    "count": 8,
}


def main(arguments: list[str] | None = None) -> None:
    """Render and score missing cases, then write NAME.json, NAME.md, NAME.png and NAME-sheet.png."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=(*BENCHMARKS, "all"), help="which benchmark to run")
    parser.add_argument("--out", type=Path, required=True, help="output folder; images and scores in it are reused")
    parser.add_argument("--seeds", type=int, help=f"number of layouts; default: {DEFAULT_SEEDS}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: must be at least 1")
    try:
        check_output_folder(options.out)
        studio = open_studio(options.device)
        cache = RenderCache(studio, load_scorer(studio.settings.builtin), options.out)
        for name in BENCHMARKS if options.benchmark == "all" else (options.benchmark,):
            run_benchmark(name, options.seeds or DEFAULT_SEEDS[name], cache)
    except CostarsError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)


def run_benchmark(name: str, seeds: int, cache: RenderCache) -> None:
    """Render every case of a benchmark with a progress bar and write its report."""
    cases = list(BENCHMARKS[name](seeds))
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        scored = list(progress.track(cache.render_cases(cases), total=len(cases)))
    rows = report.summarize(scored, BASELINES.get(name, ""))
    out = cache.out
    facts = {
        "benchmark": name,
        **describe_run("python -m costars_world.benchmarks", [name, "--seeds", str(seeds)]),
        "steps": STEPS,
        "pictures": len(scored),
        "rows": rows,
    }
    (out / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (out / f"{name}.md").write_text(report.to_markdown(rows))
    report.plot_measures(rows, out / f"{name}.png")
    sheet = report.make_sheet(scored, [cache.folder_for(case) for case, _ in scored])
    if sheet is not None:
        sheet.save(out / f"{name}-sheet.png")
    print(report.to_markdown(rows))


if __name__ == "__main__":
    main()
