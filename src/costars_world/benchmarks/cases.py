"""The cases of each benchmark: scenes in groups, each in several variants with the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from costars.methods.omg.options import TwoStage
from costars.methods.prompts import with_article
from costars.scene.scene import Scene
from costars_world.render.backgrounds import PLACES
from costars_world.training.concepts import PACK

# Pairs of each kind; the seed picks a pair, a place and a relation.
PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "man+woman": (("bo", "ana"), ("dan", "cleo"), ("bo", "eve"), ("dan", "ana")),
    "man+man": (("dan", "bo"), ("bo", "dan")),
    "woman+woman": (("ana", "cleo"), ("eve", "ana"), ("cleo", "eve")),
    "person+animal": (("eve", "rex"), ("dan", "mochi"), ("ana", "mochi"), ("bo", "rex")),
    "person+robot": (("dan", "bolt"), ("cleo", "bolt"), ("bo", "bolt")),
}
RELATIONS = ("in front of", "to the left of", "behind", "next to")
FIVE_CONCEPTS = ("ana", "bo", "rex", "mochi", "bolt")
STEP_COUNTS = (8, 12, 16, 25, 50)  # of the benchmark "steps"
STEPS_SEED = 500  # its seeds are used by no other benchmark
START_SHARES = (0.0, 0.1, 0.2, 0.32, 0.5, 0.7, 1.0)
STEPS = 10  # sampling steps of every benchmark but "steps", so that many layouts can be measured on a CPU
WHOLE, IN_COMPANY = "whole method", "in company"  # variants
GROWN_PX = 6
# First seeds of benchmarks that must not share layouts with the pairs, whose seeds begin at 0.
WEIGHT_SEED, ALONE_SEED = 300, 400
ADAPTER_WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
TUNED_WEIGHT = 0.6  # of every adapter in multi_lora: best of ADAPTER_WEIGHTS (docs/results/weight.json)
TUNED = f"multi_lora at {TUNED_WEIGHT}"


@dataclass(frozen=True)
class Case:
    """One image to generate: results are averaged over a group, and variants are compared.

    Cases of one kind and seed are compared with each other. Scenes of one seed start from the same noise, which makes
    their layouts alike: they count as one sample. grown_px is the dilation of every mask before stage 2, so that
    masks overlap.
    """

    group: str
    variant: str
    seed: int
    scene: Scene
    kind: str = ""
    grown_px: int = 0


def make_scene(prompt: str, names: tuple[str, ...], seed: int, **fields: object) -> Scene:
    """Make a scene with concepts of the pack, drawn in STEPS unless told otherwise."""
    cast = {name: {"concept": f"builtin/{name}"} for name in names}
    return Scene.model_validate({"prompt": prompt, "cast": cast, "seed": seed, "steps": STEPS, **fields})


def make_pair_scene(kind: str, seed: int, **fields: object) -> Scene:
    """Make the scene of a kind of pair and a seed."""
    one, other = PAIRS[kind][seed % len(PAIRS[kind])]
    place = list(PLACES.values())[seed % len(PLACES)].phrase
    relation = RELATIONS[(seed // 2) % len(RELATIONS)]
    return make_scene(f"{{{one}}} {relation} {{{other}}} {place}", (one, other), seed, **fields)


def make_varied_pairs(seeds: int, first_seed: int = 0) -> Iterator[tuple[str, int, Scene]]:
    """Make one pair scene for each seed, with its kind and seed: kinds take turns, so all layouts differ."""
    kinds = list(PAIRS)
    for i in range(seeds):
        kind, seed = kinds[i % len(kinds)], first_seed + i
        yield kind, seed, make_pair_scene(kind, seed)


def identity_cases(seeds: int) -> Iterator[Case]:
    """Compare two_stage with all adapters on one path, with each concept alone, and with it beside a stranger.

    "alone" is the best that a concept's adapter can do. "in company" is what it can do without this method where
    figures are as small as in a pair and occlude each other. seeds is the number of layouts of each kind.
    """
    for kind, seed, scene in make_varied_pairs(seeds * len(PAIRS)):
        yield Case(kind, "two_stage", seed, scene)
        yield Case(kind, "multi_lora", seed, _with_all_adapters(scene, 1.0))
        yield Case(kind, TUNED, seed, _with_all_adapters(scene, TUNED_WEIGHT))
        for name in scene.cast:
            prompt = f"{{{name}}} {_place_phrase(scene)}"
            yield Case(kind, "alone", seed, make_scene(prompt, (name,), seed, method="multi_lora"))
            strangers = {n: with_article(PACK[n].class_name) for n in scene.cast} | {name: f"{{{name}}}"}
            prompt = scene.prompt.format_map(strangers)
            yield Case(kind, IN_COMPANY, seed, make_scene(prompt, (name,), seed, method="multi_lora"))


def _place_phrase(scene: Scene) -> str:
    return scene.prompt.partition(scene.slots()[-1] + "} ")[2]


def alone_cases(seeds: int) -> Iterator[Case]:
    """Each concept of the pack alone, with seeds that no other benchmark uses."""
    for name in PACK:
        for seed in range(seeds):
            place = list(PLACES.values())[seed % len(PLACES)].phrase
            scene = make_scene(f"{{{name}}} {place}", (name,), ALONE_SEED + seed, method="multi_lora")
            yield Case(name, "alone", seed, scene)


def start_cases(seeds: int) -> Iterator[Case]:
    """Start stage 2 after different shares of the steps (the paper's Fig. 5)."""
    for kind, seed, scene in make_varied_pairs(seeds):
        for share in START_SHARES:
            yield Case("all pairs", f"{share:.2f}", seed, scene.model_copy(update={"start": share}), kind)


def weight_cases(seeds: int) -> Iterator[Case]:
    """Give all adapters of multi_lora several weights, to choose TUNED_WEIGHT on seeds that nothing else uses."""
    for kind, seed, scene in make_varied_pairs(seeds, WEIGHT_SEED):
        for weight in ADAPTER_WEIGHTS:
            yield Case("all pairs", f"{weight:.1f}", seed, _with_all_adapters(scene, weight), kind)


def steps_cases(layouts: int) -> Iterator[Case]:
    """Fewer steps than 50 with the scheduler of the built-in model; every layout has a seed of its own."""
    kinds = list(PAIRS)
    for seed in range(STEPS_SEED, STEPS_SEED + layouts):
        kind = kinds[seed % len(kinds)]
        for steps in STEP_COUNTS:
            yield Case("all pairs", str(steps), seed, make_pair_scene(kind, seed, steps=steps), kind)


def ablation_cases(seeds: int) -> Iterator[Case]:
    """The method without each of its parts (section 4.3), and alternatives."""
    methods: Mapping[str, Mapping[str, object]] = {
        WHOLE: {},
        "words everywhere (OMG)": {"own_words_share": 0.0, "other_words_share": 0.0},
        "others' words everywhere": {"other_words_share": 0.0},
        "without layout preservation": {"cross_replace_steps": 0.0, "self_replace_steps": 0.0},
        "without noise blending": {"blend": False},
        "feather 1 cell": {"feather_cells": 1.0},
        "feather 2 cells": {"feather_cells": 2.0},
    }
    for kind, seed, scene in make_varied_pairs(seeds):
        summed = _with_method(scene, overlap="sum")
        variants = {variant: _with_method(scene, **fields) for variant, fields in methods.items()}
        variants["members' prompts: alone"] = _with_member_prompts(scene, alone=True)
        variants["members' prompts: every trigger"] = _with_member_prompts(scene, alone=False)
        for variant, varied in variants.items():
            yield Case("all pairs", variant, seed, varied, kind)
        yield Case("all pairs", "masks grown, front wins", seed, scene, kind, GROWN_PX)
        yield Case("all pairs", "masks grown, noise summed", seed, summed, kind, GROWN_PX)


def _with_method(scene: Scene, **fields: object) -> Scene:
    method = TwoStage.model_validate({"name": "two_stage", **fields})
    return scene.model_copy(update={"method": method})


def _with_member_prompts(scene: Scene, alone: bool) -> Scene:
    """Give each member a prompt that names only itself (alone), or all members by their triggers."""
    cast = {}
    for name, member in scene.cast.items():
        words = {n: _trigger_phrase(n) for n in scene.cast}
        prompt = f"{words[name]} {_place_phrase(scene)}" if alone else scene.prompt.format_map(words)
        cast[name] = member.model_copy(update={"prompt": prompt})
    return scene.model_copy(update={"cast": cast})


def _trigger_phrase(name: str) -> str:
    return with_article(f"{name} {PACK[name].class_name}")


def degradation_cases(seeds: int) -> Iterator[Case]:
    """The loss of identity in a pair, relative to the concept alone (Fig. 2a); the images of identity_cases."""
    for case in identity_cases(seeds):
        yield replace(case, group="all pairs", kind=case.group)


def count_cases(seeds: int) -> Iterator[Case]:
    """One to five concepts in one image; the concepts take turns, so that every number shows each of them."""
    for k in range(1, len(FIVE_CONCEPTS) + 1):
        for seed in range(seeds):
            names = tuple(FIVE_CONCEPTS[(seed + i) % len(FIVE_CONCEPTS)] for i in range(k))
            slots = [f"{{{name}}}" for name in names]
            subject = " and ".join([", ".join(slots[:-1]), slots[-1]]) if k > 1 else slots[0]
            place = list(PLACES.values())[seed % len(PLACES)].phrase
            yield Case(str(k), "two_stage", seed, make_scene(f"{subject} {place}", names, seed))


def _with_all_adapters(scene: Scene, weight: float) -> Scene:
    """The scene by multi_lora, with one weight for all adapters."""
    cast = {name: member.model_copy(update={"weight": weight}) for name, member in scene.cast.items()}
    method = make_scene("{ana}", ("ana",), 0, method="multi_lora").method
    return scene.model_copy(update={"cast": cast, "method": method})


# The variant that a benchmark's other variants are compared with.
BASELINES = {"ablation": WHOLE, "degradation": "alone", "steps": "50"}
# To add a benchmark, add a line.
BENCHMARKS: Mapping[str, Callable[[int], Iterator[Case]]] = {
    "identity": identity_cases,
    "alone": alone_cases,
    "weight": weight_cases,
    "start": start_cases,
    "steps": steps_cases,
    "ablation": ablation_cases,
    "degradation": degradation_cases,
    "count": count_cases,
}
