"""Report of the masks of an EM run: their history during training, a contact sheet and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from costars.errors import ReadError, TrainError
from costars.files.atomic import atomic_file
from costars.files.plain_data import read_json
from costars.images.contact_sheet import make_grid, overlay_masks
from costars.train.data.subject import TrainingSubject
from costars.train.em.estep_masks import mean_iou
from costars.train.em.group_images import collect_group_images
from costars.train.em.objective import parse_mask_state
from costars.train.objective import Masks
from costars.train.run import read_objective_state
from costars.types import MaskArray, Region

Row = dict[str, Any]
REPORT, MAX_REPORT_BYTES = "report.json", 100_000_000


@dataclass
class MaskHistory:
    """The latest masks of a run, and one row for each E-step so far; empty for recipes without masks."""

    subjects: Sequence[TrainingSubject]
    rows: list[Row] = field(default_factory=list)
    masks: Masks = field(default_factory=dict)
    from_checkpoint: bool = False  # the masks are a checkpoint's, no step has been recorded yet

    def record(self, step: int, masks: Mapping[tuple[int, str], MaskArray]) -> bool:
        """Record the masks that a step used, after `step` earlier steps; returns whether they are new."""
        if self.from_checkpoint and all(np.array_equal(mask, self.masks.get(key, ())) for key, mask in masks.items()):
            self.masks = dict(masks)
        self.from_checkpoint = False
        if all(mask is self.masks.get(key) for key, mask in masks.items()):
            return False
        self.rows.append(_make_row(step, masks, self.masks, self.subjects))
        self.masks = dict(masks)
        return True


def load_history(subjects: Sequence[TrainingSubject], checkpoint: Path) -> MaskHistory:
    """The history of a run that resumes from a checkpoint: the rows of the report next to it, up to its step."""
    path = checkpoint.with_name(REPORT)
    if not path.exists():
        return MaskHistory(subjects)
    step, state = read_objective_state(checkpoint)
    try:
        rows = [row for row in read_json(path, MAX_REPORT_BYTES)["masks"] if row["step"] < step]
    except (ReadError, KeyError, TypeError):
        raise TrainError(f"{path}: not a readable report; delete it, its curve then starts at the checkpoint") from None
    return MaskHistory(subjects, rows, parse_mask_state(state), from_checkpoint=True)


def save_history(history: MaskHistory, folder: Path) -> None:
    """Write the rows so far to report.json."""
    with atomic_file(folder / REPORT) as partial:
        partial.write_text(json.dumps({"masks": list(history.rows)}, indent=2) + "\n")


def write_report(history: MaskHistory, folder: Path) -> None:
    """Write masks/IMAGE.CONCEPT.png, masks.png (contact sheet), report.json, and report.png if masks were given."""
    masks, images = history.masks, collect_group_images(history.subjects)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for (i, name), mask in masks.items():
        drawn = Image.fromarray((mask * 255).astype(np.uint8))
        drawn.save(folder / "masks" / f"{Path(images[i].file).stem}.{name}.png")
    overlays = []
    for i, image in enumerate(images):
        regions = {n: Region(n, masks[i, n], 1.0, k) for k, n in enumerate(image.names) if (i, n) in masks}
        overlays.append(overlay_masks(image.image, regions))
    make_grid([[image.image for image in images], overlays]).save(folder / "masks.png")
    save_history(history, folder)
    if any(row["iou"] for row in history.rows):
        _plot_iou(history.rows, folder / "report.png")


def _make_row(
    step: int, masks: Mapping[tuple[int, str], MaskArray], previous: Masks, subjects: Sequence[TrainingSubject]
) -> Row:
    """{step, iou {concept: IoU with the given masks, if any}, same {concept: IoU with the previous masks}}."""
    images = collect_group_images(subjects)
    iou, same = dict[str, float](), dict[str, float]()
    for name in (subject.name for subject in subjects):
        indices = [i for i, image in enumerate(images) if name in image.names]
        given = {i: images[i].given_masks[name] for i in indices if name in images[i].given_masks}
        if given:
            iou[name] = round(mean_iou([masks[i, name] for i in given], [*given.values()]), 4)
        if all((i, name) in previous for i in indices):
            before = [previous[i, name] for i in indices]
            same[name] = round(mean_iou([masks[i, name] for i in indices], before), 4)
    return {"step": step, "iou": iou, "same": same}


def _plot_iou(rows: Sequence[Row], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainError(
            "report.png: matplotlib is not installed, all other files were written; pip install 'costars[eval]'"
        ) from None
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in rows[0]["iou"]:
        axes.plot([row["step"] for row in rows], [row["iou"][name] for row in rows], "o-", label=name)
    axes.set(xlabel="step", ylabel="IoU with the given masks", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
