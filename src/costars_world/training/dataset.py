"""Rendered pictures on disk: the only data that anything in the built-in world is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costars_world.render.identity import CLASSES
from costars_world.render.world import MAX_FIGURES, SIZE_PX, WorldPicture, sample_picture
from costars_world.training.parallel import spread

TRAIN_SEED = 1_000_000  # pictures with smaller seeds are held out
CHUNK = 500


@dataclass(frozen=True)
class Corpus:
    """images (n, 128, 128, 3) uint8; labels (n, 128, 128) uint8: 0 the place, i the i-th figure.

    classes (n, 5) int8 holds the class index of each figure, -1 where there is none; depths (n, 5)
    int8 its depth, 0 in front; centres (n, 5, 2) float32 the (x, y) px middle of its full mask.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    classes: NDArray[np.int8]
    depths: NDArray[np.int8]
    centres: NDArray[np.float32]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def label_map(picture: WorldPicture) -> NDArray[np.uint8]:
    """(128, 128) uint8: 1 + the index of the figure seen at each pixel, 0 where the place is."""
    labels = np.zeros((SIZE_PX, SIZE_PX), dtype=np.uint8)
    for i, figure in enumerate(picture.figures):
        labels[figure.visible_mask] = i + 1
    return labels


def render(folder: Path, count: int, workers: int) -> Iterator[int]:
    """Render pictures until the folder holds this many; yields how many are there."""
    yield from write_chunks(folder, count, workers, _render_chunk)


def write_chunks(folder: Path, count: int, workers: int, write: Callable[[tuple[Path, int]], None]) -> Iterator[int]:
    """Have the missing ones of a folder's chunks written, by several processes; yields how much is there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(0, count, CHUNK) if not chunk(folder, i).exists()]
    done, tasks = count - len(missing) * CHUNK, [(folder, start) for start in missing]
    yield done
    for _ in spread(write, tasks, workers):
        done += CHUNK
        yield done


def load(folder: Path, count: int) -> Corpus:
    """The first pictures of a rendered folder."""
    chunks = []
    for start in range(0, count, CHUNK):
        with np.load(chunk(folder, start)) as data:
            chunks.append({key: data[key] for key in data.files})
    arrays = {key: np.concatenate([c[key] for c in chunks]) for key in chunks[0] if key != "captions"}
    return Corpus(**arrays, captions=[line for c in chunks for line in json.loads(str(c["captions"]))])


def load_images(folder: Path, start: int) -> NDArray[np.uint8]:
    """(n, 128, 128, 3) pictures of the one chunk that begins here."""
    with np.load(chunk(folder, start)) as data:
        images: NDArray[np.uint8] = data["images"]
    return images


def load_captions(folder: Path, count: int) -> list[str]:
    """The captions alone, without the pictures."""
    lines: list[str] = []
    for start in range(0, count, CHUNK):
        with np.load(chunk(folder, start)) as data:
            lines += json.loads(str(data["captions"]))
    return lines


def chunk(folder: Path, start: int) -> Path:
    """Where the pictures from this one on lie."""
    return folder / f"{start:07d}.npz"


def _render_chunk(task: tuple[Path, int]) -> None:
    folder, start = task
    pictures = [sample_picture(TRAIN_SEED + start + i) for i in range(CHUNK)]
    classes = np.full((CHUNK, MAX_FIGURES), -1, dtype=np.int8)
    depths = np.full((CHUNK, MAX_FIGURES), -1, dtype=np.int8)
    centres = np.zeros((CHUNK, MAX_FIGURES, 2), dtype=np.float32)
    for i, picture in enumerate(pictures):
        for j, figure in enumerate(picture.figures):
            classes[i, j] = CLASSES.index(figure.identity.class_name)
            depths[i, j] = figure.depth
            rows, columns = np.nonzero(figure.full_mask)
            centres[i, j] = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    save_chunk(
        chunk(folder, start),
        images=np.stack([np.asarray(p.image) for p in pictures]),
        labels=np.stack([label_map(p) for p in pictures]),
        classes=classes,
        depths=depths,
        centres=centres,
        captions=np.array(json.dumps([p.caption for p in pictures])),
    )


def save_chunk(path: Path, **arrays: NDArray[Any]) -> None:
    """Write a chunk whole or not at all."""
    partial = path.with_suffix(".part.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(path)
