"""Rendering the slots of a plan into the shared store, in several processes."""

from __future__ import annotations

import os
import random
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from costars_world.world2.training.cast import Casting, draw_cast
from costars_world.world2.training.plan import HELD_OUT, PLAIN, PORTRAIT, SHAPES, Plan
from costars_world.world2.training.store import CAPTION_BYTES, CROP_PX, DONE, FAILED, MAX_FIGURES, Store
from costars_world.world2.training.world import World

CHUNK = 8  # slots that a process claims at a time: short enough that the first pictures are whole soon
NICENESS = 10  # the processes that feed the GPU go first
FEWEST_PX = 60  # figures of which less is seen are not judged; held objects are small
SHARE_SEEN = 0.35  # as version 1
CROP_MARGIN = 0.08  # share of the box's longer side around a figure, as version 1
FIRST_STYLE_SHARE = 0.7  # of the pictures are in the world's own style; the others share the rest
SHOWN_ERRORS = 3  # per process


@dataclass(frozen=True)
class Job:
    """All that a rendering process needs; counter is a shared integer with a lock: the next free slot."""

    plan: Plan
    store: Store
    world: World
    casting: Casting
    portraits: int
    counter: Any


def render_slots(job: Job) -> None:
    """Claim and render slots until none is left."""
    os.nice(NICENESS)
    errors = 0
    while True:
        with job.counter.get_lock():
            start = job.counter.value
            job.counter.value = start + CHUNK
        if start >= job.plan.count:
            return
        for slot in range(start, min(start + CHUNK, job.plan.count)):
            try:
                render_slot(job, slot)
                job.store.status[slot] = DONE
            except Exception:  # one bad seed must not cost the run
                job.store.status[slot] = FAILED
                errors += 1
                if errors <= SHOWN_ERRORS:
                    print(f"render: slot {slot} failed\n{traceback.format_exc(limit=4)}", flush=True)


def render_slot(job: Job, slot: int) -> None:
    """Render one slot: picture and caption, and the truth where the plan wants it."""
    plan, store = job.plan, job.store
    kind, shape, row, seed = plan.kinds[slot], plan.shapes[slot], plan.rows[slot], int(plan.seeds[slot])
    who, identities = _cast(job, slot, seed)
    options: dict[str, Any] = {"size_px": SHAPES[shape], "truth": kind != PLAIN}
    if who:
        options["cast"] = [identities[i] for i in who]
    if len(job.world.styles) > 1:
        options["style"] = _style(seed, job.world.styles)
    scene = job.world.sample_scene(seed, **options)
    store.images[shape][row] = np.asarray(scene.image.convert("RGB"))
    store.captions[slot] = scene.caption.encode()[:CAPTION_BYTES]
    store.figure_counts[slot] = len(scene.figures)
    if kind != PLAIN:
        _write_truth(job, slot, scene, {i: identities[i] for i in who})


def _style(seed: int, styles: tuple[str, ...]) -> str:
    rng = random.Random(f"style {seed}")
    return styles[0] if rng.random() < FIRST_STYLE_SHARE else rng.choice(styles[1:])


def _cast(job: Job, slot: int, seed: int) -> tuple[list[int], tuple[Any, ...]]:
    """Indices into a pool and the pool; no indices where the renderer casts by itself: half of the time."""
    kind = job.plan.kinds[slot]
    if kind == PORTRAIT:
        return [slot // job.portraits], job.casting.line_up
    if kind == PLAIN or seed % 2:
        return [], ()
    identities = job.casting.line_up if kind == HELD_OUT else job.casting.pool
    return draw_cast(random.Random(f"cast {seed}"), identities), identities


def _write_truth(job: Job, slot: int, scene: Any, cast: dict[int, Any]) -> None:
    store, classes = job.store, job.world.classes
    labels = store.labels[job.plan.shapes[slot]][job.plan.rows[slot]]
    labels[...] = 0
    for i, figure in enumerate(scene.figures[:MAX_FIGURES]):
        identity = figure.identity
        labels[figure.visible_mask] = i + 1
        store.classes[slot, i] = classes.index(identity.class_name)
        store.depths[slot, i] = figure.depth
        rows, columns = np.nonzero(figure.full_mask)
        if len(rows):
            store.centres[slot, i] = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
        store.who[slot, i] = next((k for k, who in cast.items() if who == identity), -1)
        store.values[slot, i] = attribute_values(job.world, identity, store.values.shape[2])
        seen, whole = int(figure.visible_mask.sum()), int(figure.full_mask.sum())
        if seen >= max(FEWEST_PX, SHARE_SEEN * whole):
            store.crops[slot, i] = crop(scene.image, figure.visible_mask)
            store.judged[slot, i] = 1


def attribute_values(world: World, identity: Any, width: int) -> NDArray[np.int8]:
    """(width,) index of each attribute's value; -1 beyond the class's attributes and for hair that is not there."""
    out = np.full(width, -1, dtype=np.int8)
    shown = identity.attributes
    hairless = shown.get("hair_style") == "bald" and shown.get("beard", "none") == "none"
    for j, (attribute, values) in enumerate(world.attributes[identity.class_name].items()):
        if not (attribute == "hair_colour" and hairless):
            out[j] = list(values).index(shown[attribute])
    return out


def crop(image: Image.Image, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(64, 64, 4) uint8: the figure on grey in a square around its mask, and the mask itself."""
    rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
    half = (max(np.ptp(rows), np.ptp(columns)) + 1) * (0.5 + CROP_MARGIN)
    y, x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    figure = image.convert("RGB")
    figure.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    square = figure.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    square = square.resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR)
    paper = Image.new("RGBA", square.size, (128, 128, 128, 0))
    return np.asarray(Image.composite(square, paper, square.getchannel("A")))
