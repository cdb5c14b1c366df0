"""python -m costars_world.benchmarks {identity,alone,start,...,all} --out DIR: the OMG paper's claims, measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from costars.errors import CostarsError
from costars.files.output_folder import check_folder
from costars.studio import open_studio
from costars_world.benchmarks import report
from costars_world.benchmarks.cases import BASELINES, CLAIMS
from costars_world.benchmarks.draw import Easel
from costars_world.benchmarks.score import shipped_scorer

SEEDS = {"identity": 20, "alone": 20, "start": 4, "ablation": 4, "degradation": 20, "count": 8}


def main(arguments: list[str] | None = None) -> None:
    """Draw and score what is missing, then write NAME.json, NAME.md, NAME.png and NAME-sheet.png for each claim."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks", description=__doc__)
    parser.add_argument("claim", choices=(*CLAIMS, "all"))
    parser.add_argument("--out", type=Path, required=True, help="pictures and scores are kept here and used again")
    parser.add_argument("--seeds", type=int, help=f"of each kind of pair or count; default: {SEEDS}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: want at least 1")
    try:
        check_folder(options.out)
        studio = open_studio(options.device)
        easel = Easel(studio, shipped_scorer(studio.settings.builtin), options.out)
        for claim in CLAIMS if options.claim == "all" else (options.claim,):
            measure(claim, options.seeds or SEEDS[claim], easel)
    except CostarsError as error:
        print(f"claims: {error}", file=sys.stderr)
        sys.exit(2)


def measure(claim: str, seeds: int, easel: Easel) -> None:
    """Draw every case of one claim with a progress bar and write its report."""
    cases = list(CLAIMS[claim](seeds))
    columns = (TextColumn(claim), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        drawn = list(bar.track(easel.drawn(cases), total=len(cases)))
    rows = report.table(drawn, BASELINES.get(claim, ""))
    out = easel.out
    failed = sum(bool(facts["failed"]) for _, facts in drawn)
    facts = {"claim": claim, "seeds": seeds, "pictures": len(drawn), "layouts without the cast": failed, "rows": rows}
    (out / f"{claim}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (out / f"{claim}.md").write_text(report.markdown(rows))
    report.plot(rows, out / f"{claim}.png")
    folders = {i: easel.folder(case) for i, (case, _) in enumerate(drawn)}
    pictures = report.sheet(drawn, folders)
    if pictures is not None:
        pictures.save(out / f"{claim}-sheet.png")
    print(report.markdown(rows))


if __name__ == "__main__":
    main()
