"""Tables, plots and sheets of scored cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from costars.images.contact_sheet import make_grid
from costars_world.benchmarks.cases import Case

MEASURES = ("similarity", "attributes", "first", "iou")
RESAMPLES = 2000
CONFIDENCE = 0.95
ScoredCases = Sequence[tuple[Case, Mapping[str, Any]]]
Variants = dict[str, list[Mapping[str, Any]]]  # the scores of one scene's images by variant


def summarize(scored: ScoredCases, baseline: str = "") -> list[dict[str, Any]]:
    """Return one row for each group and variant: means over scenes with bootstrapped 95 % intervals.

    Only kinds and seeds count for which every variant of the group has an image, so that variants are compared on
    the same scenes. change is the difference in similarity from the baseline variant, scene by scene. Intervals
    resample layouts: all scenes of a seed together, because they start from the same noise. tried counts the scenes
    before those without a picture of every variant were left out.
    """
    by_group: dict[str, dict[tuple[str, int], Variants]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    variants: dict[str, list[str]] = defaultdict(list)
    tried: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for case, facts in scored:
        tried[case.group].add((case.kind, case.seed))
        if case.variant not in variants[case.group]:
            variants[case.group].append(case.variant)
        if not facts["failed"]:
            by_group[case.group][case.kind, case.seed][case.variant].append(facts)
    rows = []
    for group, names in variants.items():
        layouts: dict[int, list[Variants]] = defaultdict(list)
        for (_, seed), scene in by_group[group].items():
            if all(name in scene for name in names):
                layouts[seed].append(scene)
        for name in names:
            summary = _summarize_variant(list(layouts.values()), name, baseline if baseline in names else "")
            rows.append({"group": group, "variant": name, "tried": len(tried[group]), **summary})
    return rows


def _summarize_variant(layouts: Sequence[Sequence[Variants]], name: str, baseline: str) -> dict[str, Any]:
    """Average the measures of one variant, first over the images of a scene, then over scenes."""
    scenes = [[scene[name] for scene in layout] for layout in layouts]
    images = [facts for layout in scenes for scene in layout for facts in scene]
    counts = {"layouts": len(layouts), "scenes": sum(map(len, layouts)), "pictures": len(images)}
    row: dict[str, Any] = dict(counts)
    for measure in MEASURES:
        values = [[[facts["means"][measure] for facts in scene] for scene in layout] for layout in scenes]
        row[measure] = bootstrap_interval([[float(np.mean(v)) for v in layout if None not in v] for layout in values])
    if baseline:
        row["change"] = None if name == baseline else _compare_similarity(layouts, name, baseline)
    row["order_kept"] = bootstrap_interval(
        [[float(kept) for scene in layout for facts in scene for kept in facts["order_kept"]] for layout in scenes]
    )
    row["unet_rows"] = _mean([sum(facts["rows"].values()) for facts in images])
    return row


def _compare_similarity(
    layouts: Sequence[Sequence[Variants]], name: str, baseline: str
) -> dict[str, float | int] | None:
    def similarity(scene: Variants, variant: str) -> float:
        return float(np.mean([facts["means"]["similarity"] for facts in scene[variant]]))

    return bootstrap_interval(
        [[similarity(scene, name) - similarity(scene, baseline) for scene in layout] for layout in layouts]
    )


def bootstrap_interval(groups: Sequence[Sequence[float]]) -> dict[str, float | int] | None:
    """Return n values, their mean, and its 95 % interval; None without values.

    The bootstrap resamples groups of values that depend on each other, such as those of one layout (cluster bootstrap,
    Davison and Hinkley 1997, section 3.8).
    """
    sums = np.array([(sum(values), len(values)) for values in groups if values])
    if not len(sums):
        return None
    resampled = np.random.default_rng(0).choice(sums, (RESAMPLES, len(sums))).sum(axis=1)
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    total, n = sums.sum(axis=0)
    numbers = {"mean": total / n, "low": low, "high": high}
    return {"n": int(n)} | {key: round(float(value), 4) for key, value in numbers.items()}


def share_interval(right: int, of: int) -> dict[str, float | int]:
    """Return a share of `of` independent trials, with its 95 % interval by Wilson's score."""
    interval = binomtest(right, of).proportion_ci(CONFIDENCE, method="wilson")
    numbers = {"mean": right / of, "low": interval.low, "high": interval.high}
    return {"right": right, "n": of} | {key: round(float(value), 4) for key, value in numbers.items()}


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    measured = [m for m in (*MEASURES, "order_kept", "change") if any(row.get(m) for row in rows)]
    heads = ("group", "variant", "tried", "layouts", "scenes", *measured)
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for row in rows:
        cells = [str(row[h]) for h in heads[:5]] + [_format_cell(row.get(h)) for h in heads[5:]]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _format_cell(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def plot_measures(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot every measure with its interval: points over groups, or curves over variants if there is one group."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row["group"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    shown = [m for m in (*MEASURES, "order_kept") if any(row[m] for row in rows)]
    figure = Figure(figsize=(3.6 * len(shown), 3.4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines = variants if len(groups) > 1 else groups
        ticks = groups if len(groups) > 1 else variants
        for i, line in enumerate(lines):
            mine = [(t, _find_row(rows, line, t, len(groups) > 1)) for t in ticks]
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


def _find_row(rows: Sequence[Mapping[str, Any]], line: str, tick: str, by_group: bool) -> Mapping[str, Any] | None:
    group, variant = (tick, line) if by_group else (line, tick)
    return next((r for r in rows if (r["group"], r["variant"]) == (group, variant)), None)


def make_sheet(scored: ScoredCases, folders: Sequence[Path], rows: int = 10) -> Image.Image | None:
    """Make a sheet with a line for each of the first scenes: the layout, then each variant; None without scenes."""
    by_seed: dict[tuple[str, str, int], dict[str, Path]] = defaultdict(dict)
    for i, (case, facts) in enumerate(scored):
        if not facts["failed"]:
            by_seed[case.group, case.scene.prompt, case.seed].setdefault(case.variant, folders[i])
    # A concept alone has its own prompt and so its own line; the longest line has all other variants.
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
        lines.append([_open_image(tile) for tile in tiles])
        captions.append(f"{prompt}  (seed {seed})")
    return make_grid(lines, ("layout", *variants), captions) if lines else None


def _open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
