"""A scene with its model loaded, its cast looked up, and everything that was left open filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from costars.model.model import Model
from costars.scene.scene import Scene
from costars.types import Concept, ControlNet


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of the cast, resolved once.

    noun is what it is to the base model; words are how its own prompt calls it (trigger and noun), written as in a
    prompt, with emphasis and escapes; phrase is what a segmenter looks for; prompt is its own prompt, given_prompt
    whether the scene wrote it; negative_prompt is None where the scene's holds.
    """

    name: str
    concept: Concept
    noun: str
    words: str
    phrase: str
    prompt: str
    given_prompt: bool
    negative_prompt: str | None
    weight: float


@dataclass(frozen=True, kw_only=True)
class ResolvedScene:
    """What a method draws: no field is left open.

    members are in the order of their slots in the prompt; prompt is the global one, with class words only.
    options are the method's own, start is the share of the steps before identities take part. scheduler is a
    diffusers scheduler. notes are lines for the user; layer_counts {member: "12 of 12 layers"} says how much of
    each concept the model has.
    """

    scene: Scene
    model: Model
    scheduler: Any
    members: Mapping[str, Member]
    prompt: str
    size_px: tuple[int, int]
    steps: int
    start: float
    lowest_score: float
    options: Any
    style: Concept | None = None
    controls: Sequence[ControlNet] = ()
    notes: tuple[str, ...] = ()
    layer_counts: Mapping[str, str] = field(default_factory=dict)

    @property
    def nouns(self) -> dict[str, str]:
        """{member: what it is to the base model}, in the prompt's order."""
        return {name: member.noun for name, member in self.members.items()}

    @property
    def cast(self) -> list[Member]:
        """The members in the order in which the scene lists them."""
        return [self.members[name] for name in self.scene.cast]
