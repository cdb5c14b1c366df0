"""What each claim asks to be drawn: scenes in groups, each in several variants with the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from costars.methods.prompts import article
from costars.scene.options import TwoStage
from costars.scene.scene import Scene
from costars_world.render.backgrounds import PLACES
from costars_world.training.concepts import PACK

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
STARTS = (0.0, 0.1, 0.2, 0.32, 0.5, 0.7, 1.0)
WHOLE, IN_COMPANY, GROWN_PX, ALONE_SEED = "whole method", "in company", 6, 100


@dataclass(frozen=True)
class Case:
    """One picture to draw: group is what is averaged over, variant what is compared.

    Cases of one kind and seed are compared with each other. grown_px is by how much every mask is made
    larger before the identities come in, so that masks overlap.
    """

    group: str
    variant: str
    seed: int
    scene: Scene
    kind: str = ""
    grown_px: int = 0


def scene_of(prompt: str, names: tuple[str, ...], seed: int, **fields: object) -> Scene:
    """A scene with members of the concept pack."""
    cast = {name: {"concept": f"builtin/{name}"} for name in names}
    return Scene.model_validate({"prompt": prompt, "cast": cast, "seed": seed, **fields})


def pair(kind: str, seed: int, **fields: object) -> Scene:
    """The pair scene of this kind and seed."""
    one, other = PAIRS[kind][seed % len(PAIRS[kind])]
    place = list(PLACES.values())[seed % len(PLACES)].phrase
    relation = RELATIONS[(seed // 2) % len(RELATIONS)]
    return scene_of(f"{{{one}}} {relation} {{{other}}} {place}", (one, other), seed, **fields)


def identity(seeds: int) -> Iterator[Case]:
    """two_stage against every adapter at once on one path, and against each concept alone or beside a stranger.

    Alone is what a concept's adapter can do at best; in company is what it can do where the figures are as
    small as in a pair and cover each other, with nothing of this method.
    """
    for kind in PAIRS:
        for seed in range(seeds):
            scene = pair(kind, seed)
            yield Case(kind, "two_stage", seed, scene)
            yield Case(kind, "multi_lora", seed, scene.model_copy(update={"method": _named("multi_lora")}))
            for name in scene.cast:
                prompt = f"{{{name}}} {_place(scene)}"
                yield Case(kind, "alone", seed, scene_of(prompt, (name,), seed, method="multi_lora"))
                strangers = {n: article(PACK[n].class_name) for n in scene.cast} | {name: f"{{{name}}}"}
                prompt = scene.prompt.format_map(strangers)
                yield Case(kind, IN_COMPANY, seed, scene_of(prompt, (name,), seed, method="multi_lora"))


def _place(scene: Scene) -> str:
    return scene.prompt.partition(scene.slots()[-1] + "} ")[2]


def alone(seeds: int) -> Iterator[Case]:
    """Each concept of the pack in pictures of its own, with seeds that no other claim draws."""
    for name in PACK:
        for seed in range(seeds):
            place = list(PLACES.values())[seed % len(PLACES)].phrase
            scene = scene_of(f"{{{name}}} {place}", (name,), ALONE_SEED + seed, method="multi_lora")
            yield Case(name, "alone", seed, scene)


def start(seeds: int) -> Iterator[Case]:
    """Identities brought in after more or less of the steps (the paper's Fig. 5)."""
    for kind in PAIRS:
        for seed in range(seeds):
            for share in STARTS:
                yield Case("all pairs", f"{share:.2f}", seed, pair(kind, seed, start=share), kind)


def ablation(seeds: int) -> Iterator[Case]:
    """What each part of the method is for (section 4.3), and what else was tried."""
    methods: Mapping[str, Mapping[str, object]] = {
        WHOLE: {},
        "words everywhere (OMG)": {"own_words_share": 0.0, "other_words_share": 0.0},
        "others' words everywhere": {"other_words_share": 0.0},
        "without layout preservation": {"layout_strength": 0.0},
        "without noise blending": {"blend": False},
        "feather 1 cell": {"feather_cells": 1.0},
        "feather 2 cells": {"feather_cells": 2.0},
    }
    for kind in PAIRS:
        for seed in range(seeds):
            scene = pair(kind, seed)
            summed = _with_method(scene, overlap="sum")
            variants = {variant: _with_method(scene, **fields) for variant, fields in methods.items()}
            variants["members' prompts: alone"] = _prompted(scene, alone=True)
            variants["members' prompts: every trigger"] = _prompted(scene, alone=False)
            for variant, varied in variants.items():
                yield Case("all pairs", variant, seed, varied, kind)
            yield Case("all pairs", "masks grown, front wins", seed, scene, kind, GROWN_PX)
            yield Case("all pairs", "masks grown, noise summed", seed, summed, kind, GROWN_PX)


def _with_method(scene: Scene, **fields: object) -> Scene:
    method = TwoStage.model_validate({"name": "two_stage", **fields})
    return scene.model_copy(update={"method": method})


def _prompted(scene: Scene, alone: bool) -> Scene:
    """Members' own prompts that name nobody else, or that name all members by their triggers."""
    cast = {}
    for name, member in scene.cast.items():
        words = {n: _own_words(n) for n in scene.cast}
        prompt = f"{words[name]} {_place(scene)}" if alone else scene.prompt.format_map(words)
        cast[name] = member.model_copy(update={"prompt": prompt})
    return scene.model_copy(update={"cast": cast})


def _own_words(name: str) -> str:
    return article(f"{name} {PACK[name].class_name}")


def degradation(seeds: int) -> Iterator[Case]:
    """What each concept loses of its identity in a pair, against itself alone (Fig. 2a): the pictures of `identity`."""
    for case in identity(seeds):
        yield replace(case, group="all pairs", kind=case.group)


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


# What the other variants of a claim are held against.
BASELINES = {"ablation": WHOLE, "degradation": "alone"}
# To add a claim, add a line.
CLAIMS: Mapping[str, Callable[[int], Iterator[Case]]] = {
    "identity": identity,
    "alone": alone,
    "start": start,
    "ablation": ablation,
    "degradation": degradation,
    "count": count,
}
