"""Fixtures of the EM tests: subjects in shared images, a short recipe and open objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from costars.model.model import Model
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.em.estep_masks import Evidence
from costars.train.em.objective import EmObjective, em_objective
from costars.train.recipe import EmConfig, Recipe
from costars.train.recipes import RECIPES
from costars.train.task import TrainingTask
from costars.train.trainable import make_trainable


def half_mask(left: bool) -> np.ndarray:
    """The left or the right half of 64 x 64 px."""
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:, :32] = left
    mask[:, 32:] = not left
    return mask


def make_subject(name: str, class_name: str, examples: list[Example]) -> TrainingSubject:
    return TrainingSubject(name=name, class_name=class_name, trigger=f"<{name}>", examples=examples)


def pair(masked: bool = True) -> tuple[TrainingSubject, TrainingSubject]:
    """ana is on the left of both images, rex on the right of the first."""
    images = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "green")]
    for image in images:
        image.paste("blue", (32, 0, 64, 64))
    files = ("one.png", "two.png")
    left, right = (half_mask(left=side) if masked else None for side in (True, False))
    ana = [Example(image, None, left, file) for image, file in zip(images, files, strict=True)]
    rex = [Example(images[0], None, right, files[0])]
    return make_subject("ana", "woman", ana), make_subject("rex", "dog", rex)


def pair_in_meadow() -> tuple[TrainingSubject, TrainingSubject, TrainingSubject]:
    """The meadow m, the background of the first image, then ana and rex, who leave a strip at the right of it."""
    ana, rex = pair()
    narrow = half_mask(left=False)
    narrow[:, 48:] = 0
    rex = replace(rex, examples=[replace(rex.examples[0], mask=narrow)])
    meadow = make_subject("m", "park", [replace(rex.examples[0], mask=None)])
    return replace(meadow, background=True), ana, rex


@pytest.fixture(scope="session")
def data() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(half_mask=half_mask, make_subject=make_subject, pair=pair, pair_in_meadow=pair_in_meadow)


@pytest.fixture
def recipe() -> Recipe:
    """Four steps, the embeddings alone in the first two."""
    em = EmConfig(
        attention_cell_px=(16, 32),
        refresh_every_steps=2,
        rows_per_call=2,
        estep=replace(EmConfig().estep, timesteps=3, crf_size_px=16),
    )
    return replace(
        RECIPES["em"]["builtin"],
        steps=4,
        batch_size=3,
        rank=2,
        alpha=2,
        embedding_only_steps=2,
        vectors_per_token=1,
        em=em,
        lr_decay_fraction=0.0,
    )


@pytest.fixture
def open_objective(small: Model, recipe: Recipe) -> Iterator[Callable[..., EmObjective]]:
    """Open an objective for the test, of ana and rex by default; changes are of the recipe, em of its settings."""
    with ExitStack() as stack:

        def of(masks: str = "given", subjects=None, em: dict | None = None, **changes) -> EmObjective:
            em = replace(recipe.em, masks=masks, **em or {})
            task = TrainingTask(small, pair() if subjects is None else subjects, replace(recipe, em=em, **changes))
            trainable = stack.enter_context(make_trainable(task))
            return stack.enter_context(em_objective(task, trainable, em))

        yield of


@pytest.fixture
def evidences(monkeypatch: pytest.MonkeyPatch) -> list[Evidence]:
    """The evidence of each image's E-step; denoising errors are the noise itself, masks cover the whole image."""
    collected: list[Evidence] = []

    def estimate_masks(evidence, image, config, previous):
        collected.append(evidence)
        return {name: np.ones(image.size[::-1], dtype=np.float32) for name in evidence.maps}

    def squared_errors(unet, schedule, latents, conditioning, generator):
        noise = torch.randn(latents.shape, generator=generator)
        unet(noise, 1, conditioning.tokens, added_cond_kwargs=conditioning.added)
        return noise, noise

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", estimate_masks)
    monkeypatch.setattr("costars.train.em.evidence.squared_errors", squared_errors)
    return collected
