"""What the tests of training share: tiny checkpoints at 64 x 64 px, pictures to learn from, and short recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.model import Model
from costars.train.data import class_images as prior
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject, make_trigger
from costars.train.recipes import RECIPES, Recipe

COLOURS = ("red", "green")


@pytest.fixture(scope="session", autouse=True)
def _few_steps() -> Iterator[None]:
    """Class pictures are drawn in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "INFERENCE_STEPS", 2)
        yield


@pytest.fixture(scope="session")
def small(tiny: Model) -> Model:
    """The tiny SDXL checkpoint, told that its pictures are of 64 x 64 px."""
    tiny.encode_text("a word")  # transformers hangs hooks of its own on an encoder that reads for the first time
    return replace(tiny, facts=replace(tiny.facts, size_px=(64, 64)))


@pytest.fixture(scope="session")
def small15(sd15_folder: Path) -> Model:
    """A tiny SD 1.5 checkpoint for pictures of 64 x 64 px."""
    model = load_model(Source("tiny15", sd15_folder), torch.device("cpu"), torch.float32, 0, "attention")
    return replace(model, facts=replace(model.facts, size_px=(64, 64)))


@pytest.fixture(scope="session")
def teaching() -> Callable[..., TrainingSubject]:
    """Two pictures of mia, who is in the upper left of them, with what a recipe calls her."""

    def of(recipe: Recipe, name: str = "mia", class_name: str = "woman", masked: bool = True) -> TrainingSubject:
        mask = np.zeros((64, 64), dtype=np.float32)
        mask[:40, :32] = 1
        trigger = make_trigger(name, recipe.num_new_tokens) if recipe.num_new_tokens else name
        captions = (f"photo of a {trigger} {class_name}", f"a {trigger} {class_name} in the forest")
        examples = [
            Example(Image.new("RGB", (64, 64), colour), caption, mask if masked else None, f"{colour}.png")
            for colour, caption in zip(COLOURS, captions, strict=True)
        ]
        return TrainingSubject(name, class_name, trigger, examples)

    return of


@pytest.fixture(scope="session")
def brief() -> Callable[..., Recipe]:
    """A recipe of a family that takes a few steps of one batch, fast enough to be seen."""

    def of(name: str, family: str = "sdxl", **changes: Any) -> Recipe:
        recipe = RECIPES[name][family]
        few: dict[str, Any] = {
            "steps": 3,
            "rank": 2,
            "alpha": 2,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
        }
        few |= {"num_class_images": min(1, recipe.num_class_images), "embedding_norm_threshold": 0.0}
        if recipe.em is not None:
            estep = replace(recipe.em.estep, timesteps=2, crf_size_px=16)
            few |= {
                "embedding_only_steps": 1,
                "em": replace(recipe.em, attention_cell_px=(16, 32), rows_per_call=2, estep=estep),
            }
        return replace(recipe, **few | changes)

    return of


@pytest.fixture(scope="session")
def tensors() -> Callable[[Any], dict[str, torch.Tensor]]:
    """Every number that a concept brings."""

    def of(concept: Any) -> dict[str, torch.Tensor]:
        every = {f"{path}.{side}": t for path, e in concept.adapter.items() for side, t in vars(e).items()}
        every |= {f"{word}.{part}": t for word, parts in concept.tokens.items() for part, t in parts.items()}
        return every | dict(concept.weights)

    return of


@pytest.fixture(scope="session")
def same(tensors: Callable[[Any], dict[str, torch.Tensor]]) -> Callable[[Any, Any], bool]:
    """Whether two concepts are the same, number by number."""

    def of(left: Any, right: Any) -> bool:
        a, b = tensors(left), tensors(right)
        return bool(a) and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    return of
