"""Rendered pictures on disk, the only training data of the built-in models."""

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
from costars_world.training.parallel import run_parallel

TRAIN_SEED = 1_000_000  # smaller seeds are held out
CHUNK_SIZE = 500


@dataclass(frozen=True, kw_only=True)
class RenderedDataset:
    """images (n, 128, 128, 3) uint8; labels (n, 128, 128) uint8, 0 for background and i + 1 for figure i.

    classes (n, 5) int8 holds the class index of each figure, -1 for none; depths (n, 5) int8 its depth, 0 in front;
    centres (n, 5, 2) float32 the (x, y) centre of its full mask in px.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    classes: NDArray[np.int8]
    depths: NDArray[np.int8]
    centres: NDArray[np.float32]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def make_label_map(picture: WorldPicture) -> NDArray[np.uint8]:
    """Return (128, 128) uint8: 1 + the index of the figure visible at each pixel, 0 for background."""
    labels = np.zeros((SIZE_PX, SIZE_PX), dtype=np.uint8)
    for i, figure in enumerate(picture.figures):
        labels[figure.visible_mask] = i + 1
    return labels


def render(folder: Path, count: int, workers: int) -> Iterator[int]:
    """Render pictures until the folder holds count; yields the number rendered so far."""
    yield from write_chunks(folder, count, workers, _render_chunk)


def write_chunks(folder: Path, count: int, workers: int, write: Callable[[tuple[Path, int]], None]) -> Iterator[int]:
    """Write the missing chunks of a folder in several processes; yields the number of items so far."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(0, count, CHUNK_SIZE) if not chunk_path(folder, i).exists()]
    done, tasks = count - len(missing) * CHUNK_SIZE, [(folder, start) for start in missing]
    yield done
    for _ in run_parallel(write, tasks, workers):
        done += CHUNK_SIZE
        yield done


def load(folder: Path, count: int) -> RenderedDataset:
    """Load the first pictures of a folder."""
    chunks = []
    for start in range(0, count, CHUNK_SIZE):
        with np.load(chunk_path(folder, start)) as data:
            chunks.append({key: data[key] for key in data.files})
    arrays = {key: np.concatenate([c[key] for c in chunks]) for key in chunks[0] if key != "captions"}
    return RenderedDataset(**arrays, captions=[line for c in chunks for line in json.loads(str(c["captions"]))])


def load_images(folder: Path, start: int) -> NDArray[np.uint8]:
    """Load the images (n, 128, 128, 3) of the chunk that begins at start."""
    with np.load(chunk_path(folder, start)) as data:
        images: NDArray[np.uint8] = data["images"]
    return images


def load_captions(folder: Path, count: int) -> list[str]:
    """Load the captions of the first pictures, without the images."""
    captions: list[str] = []
    for start in range(0, count, CHUNK_SIZE):
        with np.load(chunk_path(folder, start)) as data:
            captions += json.loads(str(data["captions"]))
    return captions


def chunk_path(folder: Path, start: int) -> Path:
    """Return the file of the chunk that begins at start."""
    return folder / f"{start:07d}.npz"


def _render_chunk(task: tuple[Path, int]) -> None:
    folder, start = task
    pictures = [sample_picture(TRAIN_SEED + start + i) for i in range(CHUNK_SIZE)]
    classes = np.full((CHUNK_SIZE, MAX_FIGURES), -1, dtype=np.int8)
    depths = np.full((CHUNK_SIZE, MAX_FIGURES), -1, dtype=np.int8)
    centres = np.zeros((CHUNK_SIZE, MAX_FIGURES, 2), dtype=np.float32)
    for i, picture in enumerate(pictures):
        for j, figure in enumerate(picture.figures):
            classes[i, j] = CLASSES.index(figure.identity.class_name)
            depths[i, j] = figure.depth
            rows, columns = np.nonzero(figure.full_mask)
            centres[i, j] = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    save_chunk(
        chunk_path(folder, start),
        images=np.stack([np.asarray(p.image) for p in pictures]),
        labels=np.stack([make_label_map(p) for p in pictures]),
        classes=classes,
        depths=depths,
        centres=centres,
        captions=np.array(json.dumps([p.caption for p in pictures])),
    )


def save_chunk(path: Path, **arrays: NDArray[Any]) -> None:
    """Write a chunk atomically."""
    partial = path.with_suffix(".part.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(path)
