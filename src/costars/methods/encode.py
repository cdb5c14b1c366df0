"""What every method reads off a scene: its sampler, and its encoded prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from costars.errors import SceneError
from costars.model.text_encoder import NO_LEARNED_WORDS
from costars.resolved_scene import Member, ResolvedScene
from costars.sample.loop import Sampler, prepare_sampler
from costars.types import Concept, LearnedWords, Text


def make_sampler(resolved: ResolvedScene, start: int = 0) -> Sampler:
    """The scene's sampler, ready to take the steps from start on."""
    scene = resolved.scene
    return prepare_sampler(
        resolved.scheduler,
        resolved.steps,
        resolved.model.device,
        resolved.size_px,
        scene.guidance_scale,
        seed=scene.seed,
        start=start,
    )


def encode_prompt(
    resolved: ResolvedScene, prompt: str, words: Sequence[str] = (), learned: LearnedWords = NO_LEARNED_WORDS
) -> Text:
    """A prompt in the model's text encoders, with the positions of these words and the embeddings of learned ones."""
    scene = resolved.scene
    return resolved.model.encode_text(prompt, words, scene.clip_skip, learned, scene.emphasis)


def encode_negative(
    resolved: ResolvedScene, prompt: str | None = None, learned: LearnedWords = NO_LEARNED_WORDS
) -> Text | None:
    """The encoded negative prompt (the scene's unless given); None without guidance."""
    scene = resolved.scene
    if scene.guidance_scale <= 1:
        return None
    negative = scene.negative_prompt if prompt is None else prompt
    zeros = scene.force_zeros_for_empty_prompt
    return resolved.model.encode_negative(negative, scene.clip_skip, learned, scene.emphasis, zeros)


def learned_words(resolved: ResolvedScene, *members: Member) -> LearnedWords:
    """The learned words of these members and of the style.

    Raises SceneError where one word has two meanings in one prompt.
    """
    learned: dict[str, Mapping[str, Tensor]] = {}
    owners: dict[str, Concept] = {}
    concepts = [member.concept for member in members] + ([resolved.style] if resolved.style else [])
    for concept in concepts:
        for word, parts in concept.words.items():
            if word in owners and owners[word].sha256 != concept.sha256:
                raise SceneError(
                    f"the word {word!r} is defined by {owners[word].source!r} and by {concept.source!r}, which share "
                    "a prompt; import one of them again with another --trigger"
                )
            learned[word], owners[word] = parts, concept
    return learned
