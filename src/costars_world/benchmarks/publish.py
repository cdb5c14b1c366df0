"""Copy measured figures and their pictures into docs, and write the tables of docs/results.md from them.

A table stands between <!-- table: NAME --> and <!-- end -->, NAME being that of a file of docs/results.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from costars_world.benchmarks.cases import BENCHMARKS
from costars_world.benchmarks.provenance import note_picture

DOCS = Path(__file__).parents[3] / "docs"
TABLE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Files of an output folder, NAME.json.
PUBLISHED = (*BENCHMARKS, "base", "recipes", "em-masks", "adapters", "kernel-counts", "bench-sdxl-tiny")
PICTURES = ("identity.png", "identity-sheet.png", "start.png")
Row = Mapping[str, Any]
Cells = Mapping[str, str]  # of one line, by heading
HEADINGS = {
    "similarity": "similarity",
    "change": "change",
    "attributes": "attributes right",
    "first": "found first of 101",
    "iou": "layout IoU",
    "order_kept": "order kept",
}


RECIPE_SCORES = {key: HEADINGS[key] for key in ("similarity", "attributes", "first")} | {"text": "text"}


def format_interval(value: Mapping[str, float] | None, decimals: int = 2) -> str:
    """The mean and its interval; empty where nothing was measured."""
    if value is None:
        return ""
    mean, low, high = (f"{value[key]:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def format_count(value: Mapping[str, float] | None) -> str:
    """How many of how many; empty where nothing was measured."""
    return "" if value is None else f"{value['mean'] * value['n']:.0f} of {value['n']}"


FORMATS = {"order_kept": format_count}  # the pairs that touch are few


def format_share(share: Mapping[str, float]) -> str:
    """A share as counts, per cent and interval."""
    low, high = (f"{100 * share[key]:.0f}" for key in ("low", "high"))
    return f"{share['right']} of {share['n']}, {100 * share['mean']:.0f} % ({low} to {high})"


def benchmark_lines(first: Callable[[Row], Cells], *measures: str) -> Callable[[Row], list[Cells]]:
    """Lines of a benchmark of scenes: the first cells, the numbers of layouts and scenes, then these measures."""

    def lines(facts: Row) -> list[Cells]:
        return [
            {
                **first(row),
                "layouts": str(row["layouts"]),
                "scenes": f"{row['scenes']} of {row['tried']}",
                **{HEADINGS[key]: FORMATS.get(key, format_interval)(row.get(key)) for key in measures},
            }
            for row in facts["rows"]
        ]

    return lines


def base_lines(facts: Row) -> list[Cells]:
    """Lines of the base model's shares."""
    titles = {"classes": "classes", "count": "count", "place": "place", "depth": "depth", "side": "left, right"}
    return [
        {"prompts": group, **{title: format_share(shares[k]) if k in shares else "" for k, title in titles.items()}}
        for group, shares in facts["shares"].items()
    ]


def recipe_lines(facts: Row) -> list[Cells]:
    """Lines of the training recipes."""
    return [
        {
            "recipe": f"`{row['recipe']}`",
            "pictures": str(row["of"]),
            **{title: format_interval(row[key]) for key, title in RECIPE_SCORES.items()},
            "MB": f"{row['MB']:.2f}",
        }
        for row in facts["rows"]
    ]


def em_lines(facts: Row) -> list[Cells]:
    """Lines of the masks of each set of the EM benchmark, and what each part of the recipe adds over all sets."""
    lines: list[Cells] = [
        {"set": row["set"], "masks": row["evidence"], **{f"{step} steps": f"{v:.2f}" for step, v in row["iou"].items()}}
        for row in facts["sets"]
    ]
    ends = list(facts["sets"][0]["iou"])
    for name, value in facts["differences"].items():
        sets = f"mean difference of {value['n']} sets"
        lines.append({"set": sets, "masks": name, f"{ends[0]} steps": "", f"{ends[-1]} steps": f"{value['mean']:+.2f}"})
    return lines


def kernel_lines(facts: Row) -> list[Cells]:
    """Lines of the kernels, bytes and waits of one step."""
    return [
        {"one step": name, **{key: f"{counts[key]:,}" for key in ("kernels", "gigabytes", "waits")}}
        for name, counts in facts.items()
    ]


def adapter_lines(facts: Row) -> list[Cells]:
    """Lines of the times of bench/adapters.py."""
    lines = list[Cells]()
    for name in next(iter(facts["measured"].values())):
        times = {k: table[name] for k, table in facts["measured"].items()}
        cells = {k: f"{row['ratio']:.2f} ({1000 * row['seconds']:.0f} ms)" for k, row in times.items()}
        lines.append({"implementation": name, **cells})
    return lines


def sdxl_lines(facts: Row) -> list[Cells]:
    """Lines of the times of bench/sdxl.py."""
    return [
        {
            "concepts": name.rpartition("=")[2],
            "UNet rows": str(row["rows"]),
            "layout": f"{row['seconds']['layout']:.2f} s",
            "personalise": f"{row['seconds']['personalise']:.2f} s",
            "relative to diffusers' pipeline for these rows": f"{row['over_diffusers']:.2f} x",
            "as fast as the official schedule": f"{row['times_faster_than_official']:.2f} x",
        }
        for name, row in facts["measured"].items()
        if "rows" in row
    ]


# {table: its lines}; to add a table, add a line.
TABLES: Mapping[str, Callable[[Row], list[Cells]]] = {
    "base": base_lines,
    "alone": benchmark_lines(lambda row: {"concept": row["group"]}, "similarity", "attributes", "first"),
    "weight": benchmark_lines(lambda row: {"weight": row["variant"]}, "similarity", "attributes", "first"),
    "identity": benchmark_lines(
        lambda row: {"pair": row["group"], "method": _code(row["variant"])},
        *("similarity", "attributes", "first", "iou", "order_kept"),
    ),
    "degradation": benchmark_lines(
        lambda row: {"method": _code(row["variant"])}, "similarity", "attributes", "first", "iou", "order_kept"
    ),
    "ablation": benchmark_lines(
        lambda row: {"variant": row["variant"]}, "similarity", "change", "attributes", "first", "iou", "order_kept"
    ),
    "start": benchmark_lines(
        lambda row: {"start": row["variant"]}, "similarity", "attributes", "first", "iou", "order_kept"
    ),
    "steps": benchmark_lines(
        lambda row: {"steps": row["variant"]}, "similarity", "change", "attributes", "first", "iou", "order_kept"
    ),
    "count": benchmark_lines(
        lambda row: {"concepts": row["group"]}, "similarity", "attributes", "first", "iou", "order_kept"
    ),
    "recipes": recipe_lines,
    "em-masks": em_lines,
    "adapters": adapter_lines,
    "kernel-counts": kernel_lines,
    "bench-sdxl-tiny": sdxl_lines,
}


def _code(variant: str) -> str:
    return re.sub(r"^(two_stage|multi_lora)", r"`\1`", variant)


def format_table(lines: Sequence[Cells]) -> str:
    """A Markdown table of lines with the same headings."""
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_tables(text: str, results: Path) -> str:
    """The text with every table written anew from its JSON file in the folder `results`."""

    def table(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        facts = json.loads((results / f"{name}.json").read_text())
        return f"{begin}{format_table(TABLES[name](facts))}{end}"

    return TABLE.sub(table, text)


def main(arguments: list[str] | None = None) -> None:
    """Copy the figures of an output folder, if one is given, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.publish", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="output folder of the benchmarks")
    out = parser.parse_args(arguments).out
    results, page = DOCS / "results", DOCS / "results.md"
    if out is not None:
        results.mkdir(exist_ok=True)
        for name in PUBLISHED:
            if (out / f"{name}.json").exists():
                shutil.copyfile(out / f"{name}.json", results / f"{name}.json")
        for name in PICTURES:
            facts = out / f"{name.removesuffix('.png').removesuffix('-sheet')}.json"
            if (out / name).exists():
                shutil.copyfile(out / name, DOCS / "images" / name)
                note_picture(DOCS / "images" / name, json.loads(facts.read_text())["command"], "builtin", "judge")
    page.write_text(write_tables(page.read_text(), results))


if __name__ == "__main__":
    main()
