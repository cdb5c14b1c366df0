"""What each claim asks to be drawn: scenes in groups, each in several variants with the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from costars.microworld.places import PLACES
from costars.scene import Scene

START = 0.12  # share of the steps before identities come in, on the built-in world (docs/results.md)
WHOLE = 1.0

# Who is paired for each kind of pair; the seed picks a cast, a place and who is where.
PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "man+woman": (("bo", "ana"), ("dan", "cleo"), ("bo", "eve"), ("dan", "ana")),
    "man+man": (("dan", "bo"), ("bo", "dan")),
    "woman+woman": (("ana", "cleo"), ("eve", "ana"), ("cleo", "eve")),
    "person+animal": (("eve", "rex"), ("dan", "mochi"), ("ana", "mochi"), ("bo", "rex")),
    "person+robot": (("dan", "bolt"), ("cleo", "bolt"), ("bo", "bolt")),
}
RELATIONS = ("in front of", "to the left of", "behind", "next to")
EVERYONE = ("ana", "bo", "rex", "mochi", "bolt")
STARTS = (0.0, 0.1, 0.2, 0.32, 0.5, 0.7, WHOLE)


@dataclass(frozen=True)
class Case:
    """One picture to draw: group is what is averaged over, variant what is compared."""

    group: str
    variant: str
    seed: int
    scene: Scene


def scene_of(prompt: str, names: tuple[str, ...], seed: int, **fields: object) -> Scene:
    """A scene with members of the concept pack."""
    cast = {name: {"concept": f"builtin/{name}"} for name in names}
    return Scene.model_validate({"prompt": prompt, "cast": cast, "seed": seed, "start": START, **fields})


def pair(kind: str, seed: int, **fields: object) -> Scene:
    """The pair scene of this kind and seed."""
    one, other = PAIRS[kind][seed % len(PAIRS[kind])]
    place = list(PLACES.values())[seed % len(PLACES)].phrase
    relation = RELATIONS[(seed // 2) % len(RELATIONS)]
    return scene_of(f"{{{one}}} {relation} {{{other}}} {place}", (one, other), seed, **fields)


def identity(seeds: int) -> Iterator[Case]:
    """two_stage against every adapter at once on one path, and against each concept alone."""
    for kind in PAIRS:
        for seed in range(seeds):
            scene = pair(kind, seed)
            yield Case(kind, "two_stage", seed, scene)
            yield Case(kind, "multi_lora", seed, scene.model_copy(update={"method": _named("multi_lora")}))
            for name in scene.cast:
                place = scene.prompt.partition(scene.slots()[-1] + "} ")[2]
                yield Case(kind, "alone", seed, scene_of(f"{{{name}}} {place}", (name,), seed, method="multi_lora"))


def start(seeds: int) -> Iterator[Case]:
    """Identities brought in after more or less of the steps (the paper's Fig. 5)."""
    for kind in PAIRS:
        for seed in range(seeds):
            for share in STARTS:
                yield Case("all pairs", f"{share:.2f}", seed, pair(kind, seed, start=share))


def ablation(seeds: int) -> Iterator[Case]:
    """What each part of the method is for (section 4.3)."""
    variants: Mapping[str, Mapping[str, object]] = {
        "whole method": {},
        "without layout preservation": {"method": {"name": "two_stage", "layout_strength": 0.0}},
        "without noise blending": {"method": {"name": "two_stage", "blend": False}},
        "feather 1 cell": {"method": {"name": "two_stage", "feather_cells": 1.0}},
        "feather 2 cells": {"method": {"name": "two_stage", "feather_cells": 2.0}},
    }
    for kind in PAIRS:
        for seed in range(seeds):
            for variant, fields in variants.items():
                yield Case("all pairs", variant, seed, pair(kind, seed, **fields))


def degradation(seeds: int) -> Iterator[Case]:
    """Each concept alone against the same concept in a pair (Fig. 2a): the pictures of `identity` again."""
    yield from identity(seeds)


def count(seeds: int) -> Iterator[Case]:
    """One to five concepts in one picture."""
    for k in range(1, len(EVERYONE) + 1):
        names = EVERYONE[:k]
        slots = [f"{{{name}}}" for name in names]
        subject = " and ".join([", ".join(slots[:-1]), slots[-1]]) if k > 1 else slots[0]
        for seed in range(seeds):
            place = list(PLACES.values())[seed % len(PLACES)].phrase
            yield Case(str(k), "two_stage", seed, scene_of(f"{subject} {place}", names, seed))


def _named(method: str) -> object:
    return scene_of("{ana}", ("ana",), 0, method=method).method


# To add a claim, add a line.
CLAIMS: Mapping[str, Callable[[int], Iterator[Case]]] = {
    "identity": identity,
    "start": start,
    "ablation": ablation,
    "degradation": degradation,
    "count": count,
}
