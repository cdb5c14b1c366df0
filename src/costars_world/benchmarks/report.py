"""Tables, plots and sheets of what was drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from costars.images.contact_sheet import make_grid
from costars_world.benchmarks.cases import Case

MEASURES = ("similarity", "attributes", "first", "iou", "light")
RESAMPLES = 2000
CONFIDENCE = 0.95
Drawn = Sequence[tuple[Case, Mapping[str, Any]]]


def table(drawn: Drawn, baseline: str = "") -> list[dict[str, Any]]:
    """One row for each group and variant: means over pictures with bootstrapped 95 % intervals.

    Only kinds and seeds count for which every variant of the group has a picture, so that all are held
    to the same scenes. change is by how much the similarity differs from that of the baseline variant,
    scene by scene.
    """
    per_scene: dict[str, dict[tuple[str, int], dict[str, list[Mapping[str, Any]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    variants: dict[str, list[str]] = defaultdict(list)
    for case, facts in drawn:
        if case.variant not in variants[case.group]:
            variants[case.group].append(case.variant)
        if not facts["failed"]:
            per_scene[case.group][case.kind, case.seed][case.variant].append(facts)
    rows = []
    for group, names in variants.items():
        complete = [of for of in per_scene[group].values() if all(name in of for name in names)]
        for name in names:
            pictures = [facts for of in complete for facts in of[name]]
            row: dict[str, Any] = {"group": group, "variant": name, "scenes": len(complete), "pictures": len(pictures)}
            for measure in MEASURES:
                per = [[f["means"][measure] for f in of[name]] for of in complete]
                row[measure] = interval([float(np.mean(v)) for v in per if None not in v])
            if baseline in names:
                alike = [
                    [np.mean([f["means"]["similarity"] for f in of[v]]) for v in (name, baseline)] for of in complete
                ]
                row["change"] = None if name == baseline else interval([float(mine - base) for mine, base in alike])
            row["order_kept"] = interval([float(k) for f in pictures for k in f["order_kept"]])
            row["unet_rows"] = _mean([sum(f["rows"].values()) for f in pictures])
            row["seconds"] = _mean([sum(v for k, v in f["seconds"].items() if k != "load") for f in pictures])
            rows.append(row)
    return rows


def interval(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, and the bounds between which 95 % of the means of resampled values lie."""
    if not values:
        return None
    rng = np.random.default_rng(0)
    resampled = rng.choice(np.asarray(values), (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(resampled, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return {"mean": round(float(np.mean(values)), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, one line for each group and variant."""
    told = [m for m in (*MEASURES, "order_kept", "change") if any(row.get(m) for row in rows)]
    heads = ("group", "variant", "scenes", *told)
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for row in rows:
        cells = [str(row[h]) for h in heads[:3]] + [_cell(row.get(h)) for h in heads[3:]]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _cell(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every measure with its interval: bars over groups, or curves where there is one group."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row["group"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    shown = [m for m in (*MEASURES, "order_kept") if any(row[m] for row in rows)]
    figure = Figure(figsize=(3.6 * len(shown), 3.4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines = variants if len(groups) > 1 else groups
        ticks = groups if len(groups) > 1 else variants
        for i, line in enumerate(lines):
            mine = [(t, _of(rows, line, t, len(groups) > 1)) for t in ticks]
            points = [(ticks.index(t), row[measure]) for t, row in mine if row and row[measure]]
            if not points:
                continue
            x = np.array([p for p, _ in points]) + 0.08 * (i - (len(lines) - 1) / 2)
            y = np.array([v["mean"] for _, v in points])
            below, above = (y - [v["low"] for _, v in points], [v["high"] for _, v in points] - y)
            style = "o-" if len(groups) == 1 else "o"
            axes.errorbar(x, y, (below.clip(0), above.clip(0)), fmt=style, capsize=3, label=line)
        axes.set_title(measure)
        axes.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right")
        axes.grid(alpha=0.3)
    if len(groups) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=110)


def _of(rows: Sequence[Mapping[str, Any]], line: str, tick: str, by_group: bool) -> Mapping[str, Any] | None:
    group, variant = (tick, line) if by_group else (line, tick)
    return next((r for r in rows if (r["group"], r["variant"]) == (group, variant)), None)


def sheet(drawn: Drawn, folder_of: Mapping[int, Path], rows: int = 10) -> Image.Image | None:
    """One line for each of the first scenes of a group: the layout, then each variant; None without any."""
    by_seed: dict[tuple[str, str, int], dict[str, Path]] = defaultdict(dict)
    for i, (case, facts) in enumerate(drawn):
        if not facts["failed"]:
            by_seed[case.group, case.scene.prompt, case.seed].setdefault(case.variant, folder_of[i])
    # A concept alone has a prompt, and so a line, of its own: the longest line has every other variant.
    variants = max((list(of) for of in by_seed.values()), key=len, default=[])
    whole = [(key, of) for key, of in by_seed.items() if list(of) == variants]
    per_group: dict[str, int] = defaultdict(int)
    most = -(-rows // len({group for (group, _, _), _ in whole} or {""}))
    lines, captions = [], []
    for (group, prompt, seed), of in whole:
        if per_group[group] == most:
            continue
        per_group[group] += 1
        layouts = [f / "layout.png" for f in of.values() if (f / "layout.png").exists()]
        tiles = [*layouts[:1], *(of[v] / "picture.png" for v in variants)]
        lines.append([_opened(tile) for tile in tiles])
        captions.append(f"{prompt}  (seed {seed})")
    return make_grid(lines, ("layout", *variants), captions) if lines else None


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
