"""Fixtures of the training tests: tiny checkpoints at 64 x 64 px, subjects, and short recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from costars.train.data import class_images
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject, make_trigger
from costars.train.recipe import Recipe
from costars.train.recipes import RECIPES
from costars.train.task import TrainingTask
from costars.types import Concept

COLOURS = ("red", "green")


@pytest.fixture(scope="session", autouse=True)
def _few_inference_steps() -> Iterator[None]:
    """Generate class images in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_images, "INFERENCE_STEPS", 2)
        yield


@pytest.fixture(scope="session")
def small(tiny: Model) -> Model:
    """The tiny SDXL checkpoint with a native size of 64 x 64 px."""
    tiny.encode_text("a word")  # transformers registers hooks of its own at an encoder's first call
    return replace(tiny, info=replace(tiny.info, size_px=(64, 64)))


@pytest.fixture(scope="session")
def small15(sd15_folder: Path) -> Model:
    """A tiny SD 1.5 checkpoint with a native size of 64 x 64 px."""
    model = load_model(Source("tiny15", sd15_folder), torch.device("cpu"), torch.float32, 0, "attention")
    return replace(model, info=replace(model.info, size_px=(64, 64)))


@pytest.fixture(scope="session")
def make_subject() -> Callable[..., TrainingSubject]:
    """A subject for a recipe: two images with captions, and masks of the upper left part."""

    def make(recipe: Recipe, name: str = "mia", class_name: str = "woman", masked: bool = True) -> TrainingSubject:
        mask = np.zeros((64, 64), dtype=np.float32)
        mask[:40, :32] = 1
        trigger = make_trigger(name, recipe.num_new_tokens) if recipe.num_new_tokens else name
        captions = (f"photo of a {trigger} {class_name}", f"a {trigger} {class_name} in the forest")
        examples = [
            Example(Image.new("RGB", (64, 64), colour), caption, mask if masked else None, f"{colour}.png")
            for colour, caption in zip(COLOURS, captions, strict=True)
        ]
        return TrainingSubject(name=name, class_name=class_name, trigger=trigger, examples=examples)

    return make


@pytest.fixture(scope="session")
def make_task(small: Model, make_subject: Callable[..., TrainingSubject]) -> Callable[..., TrainingTask]:
    """A task for a recipe, by default of mia on the small SDXL model."""

    def make(recipe: Recipe, subjects: Sequence[TrainingSubject] | None = None, model: Model = small) -> TrainingTask:
        return TrainingTask(model, [make_subject(recipe)] if subjects is None else subjects, recipe)

    return make


@pytest.fixture(scope="session")
def short_recipe() -> Callable[..., Recipe]:
    """A recipe with three steps and small layers, and with these changes."""

    def make(name: str, family: str = "sdxl", **changes: Any) -> Recipe:
        recipe = RECIPES[name][family]
        short: dict[str, Any] = {
            "steps": 3,
            "rank": 2,
            "alpha": 2,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "num_class_images": min(1, recipe.num_class_images),
            "embedding_norm_threshold": 0.0,
        }
        if recipe.em is not None:
            estep = replace(recipe.em.estep, timesteps=2, crf_size_px=16)
            em = replace(recipe.em, attention_cell_px=(16, 32), rows_per_call=2, estep=estep)
            short |= {"embedding_only_steps": 1, "em": em}
        return replace(recipe, **short | changes)

    return make


@pytest.fixture(scope="session")
def same_concept() -> Callable[[Concept, Concept], bool]:
    """Whether two concepts have equal tensors."""

    def tensors(concept: Concept) -> dict[str, torch.Tensor]:
        found = {f"{path}.{side}": t for path, e in concept.adapter.items() for side, t in vars(e).items()}
        found |= {f"{word}.{part}": t for word, parts in concept.tokens.items() for part, t in parts.items()}
        return found | dict(concept.weights)

    def compare(left: Concept, right: Concept) -> bool:
        a, b = tensors(left), tensors(right)
        return bool(a) and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    return compare


@pytest.fixture
def predict(tiny: Model) -> Callable[[], torch.Tensor]:
    """One prediction of the tiny UNet."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 77, 64, generator=generator)
    width = tiny.encoders[1].module.config.projection_dim
    added = {"text_embeds": torch.zeros(1, width), "time_ids": tiny.size_ids((64, 64))}
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    return lambda: tiny.unet(latent, torch.tensor(300), text, added_cond_kwargs=added).sample
