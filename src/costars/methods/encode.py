"""What every method reads off a scene: its sampler, and the text that guidance steers away from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costars.model.model import Model
from costars.model.text_encoder import NOTHING_LEARNED
from costars.sample.loop import Sampler, sampler
from costars.scene.scene import Scene
from costars.types import LearnedWords, Text


def size_px(model: Model, scene: Scene) -> tuple[int, int]:
    """(width, height) of the scene's picture."""
    return scene.size or model.facts.size_px


def sampler_of(model: Model, scene: Scene, scheduler: Any, start: int = 0) -> Sampler:
    """The scene's sampler, ready to take the steps from start on."""
    size, seed = size_px(model, scene), scene.seed
    return sampler(scheduler, scene.steps, model.device, size, scene.guidance_scale, seed=seed, start=start)


def negative_text(
    model: Model, scene: Scene, prompt: str | None = None, learned: LearnedWords = NOTHING_LEARNED
) -> Text | None:
    """The encoded negative prompt (the scene's own unless given); None where there is no guidance."""
    if scene.guidance_scale <= 1:
        return None
    return encoded(model, scene, scene.negative_prompt if prompt is None else prompt, learned=learned)


def encoded(
    model: Model,
    scene: Scene,
    prompt: str,
    words: Sequence[str] = (),
    learned: LearnedWords = NOTHING_LEARNED,
) -> Text:
    """A prompt as this scene has it read, with the words that concepts were taught as."""
    return model.encode_text(prompt, words, scene.clip_skip, learned)
