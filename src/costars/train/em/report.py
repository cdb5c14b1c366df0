"""How masks came to be where they were learned: their agreement with the truth and with themselves, step by step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from costars.errors import TrainError
from costars.files.atomic import atomic_file
from costars.images.contact_sheet import make_grid, overlay_masks
from costars.train.data.subject import TrainingSubject
from costars.train.em.estep_masks import mean_iou
from costars.train.em.group_images import collect_group_images
from costars.train.objective import Masks
from costars.train.run import read_objective_state
from costars.types import MaskArray, Region

Row = dict[str, Any]
REPORT = "report.json"


@dataclass
class MaskHistory:
    """The masks as they came to be, where a recipe makes some: a row for each time that they were made."""

    subjects: Sequence[TrainingSubject]
    rows: list[Row] = field(default_factory=list)
    masks: Masks = field(default_factory=dict)
    taken_up: bool = False  # the masks are a checkpoint's, nobody was heard yet

    def record(self, steps: int, masks: Mapping[tuple[int, str], MaskArray]) -> bool:
        """The masks that a step used, so many steps having been taken before it; whether they were made for it."""
        if self.taken_up and all(np.array_equal(mask, self.masks.get(key, ())) for key, mask in masks.items()):
            self.masks = dict(masks)
        self.taken_up = False
        if all(mask is self.masks.get(key) for key, mask in masks.items()):
            return False
        self.rows.append(_row_of(steps, masks, self.masks, self.subjects))
        self.masks = dict(masks)
        return True


def load_history(subjects: Sequence[TrainingSubject], kept: Path) -> MaskHistory:
    """The story of a run that goes on from its checkpoint, with the rows beside it up to there."""
    path = kept.with_name(REPORT)
    if not path.exists():
        return MaskHistory(subjects)
    step, state = read_objective_state(kept)
    rows = [row for row in json.loads(path.read_text())["masks"] if row["step"] < step]
    masks = {(int(key.partition(".")[0]), key.partition(".")[2]): tensor.numpy() for key, tensor in state.items()}
    return MaskHistory(subjects, rows, masks, taken_up=True)


def _row_of(step: int, masks: Mapping[tuple[int, str], MaskArray], before: Masks, subjects: Sequence[TrainingSubject]) -> Row:
    """{step, iou {concept: with the masks that were given, where any were}, same {concept: with the masks before}}."""
    pictures = collect_group_images(subjects)
    iou, same = dict[str, float](), dict[str, float]()
    for teaching in subjects:
        name = teaching.name
        own = [i for i, picture in enumerate(pictures) if name in picture.names]
        given = {i: pictures[i].given[name] for i in own if name in pictures[i].given}
        if given:
            iou[name] = round(mean_iou([masks[i, name] for i in given], [*given.values()]), 4)
        if all((i, name) in before for i in own):
            same[name] = round(mean_iou([masks[i, name] for i in own], [before[i, name] for i in own]), 4)
    return {"step": step, "iou": iou, "same": same}


def keep(story: MaskHistory, folder: Path) -> None:
    """report.json, the rows so far."""
    with atomic_file(folder / REPORT) as partial:
        partial.write_text(json.dumps({"masks": list(story.rows)}, indent=2) + "\n")


def write(story: MaskHistory, folder: Path) -> None:
    """masks/PICTURE.CONCEPT.png, sheet of masks, report.json, and report.png where there is a truth to plot."""
    rows, masks, subjects = story.rows, story.masks, story.subjects
    pictures = collect_group_images(subjects)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for (i, name), mask in masks.items():
        drawn = Image.fromarray((mask * 255).astype(np.uint8))
        drawn.save(folder / "masks" / f"{Path(pictures[i].file).stem}.{name}.png")
    shown = [
        overlay_masks(p.image, {n: Region(n, masks[i, n], 1.0, k) for k, n in enumerate(p.names) if (i, n) in masks})
        for i, p in enumerate(pictures)
    ]
    make_grid([[p.image for p in pictures], shown]).save(folder / "masks.png")
    keep(story, folder)
    if any(row["iou"] for row in rows):
        _plot(rows, folder / "report.png")


def _plot(rows: Sequence[Row], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainError("report.png: needs matplotlib; pip install 'costars[eval]'; all else is written") from None
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in rows[0]["iou"]:
        axes.plot([row["step"] for row in rows], [row["iou"][name] for row in rows], "o-", label=name)
    axes.set(xlabel="step", ylabel="mask IoU with the truth", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
