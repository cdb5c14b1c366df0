"""Identities of the built-in world: classes, attributes and the words that describe them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

_SKINS = ("pale", "light", "tan", "brown", "dark")
_HAIRS = ("black", "brown", "blond", "red", "white", "blue", "pink")
_SHIRTS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
_PATTERNS = ("plain", "striped", "dotted", "heart")
_GLASSES = ("none", "glasses", "sunglasses")
_HATS = ("none", "red cap", "blue beanie", "straw hat")
_COLLARS = ("none", "red", "blue", "green")

# Probability of "none", so that hair and faces stay visible; the other values share the rest equally.
NONE_PROBABILITY = {"glasses": 0.5, "hat": 0.6, "beard": 0.5}

# class -> attribute -> allowed values.
ATTRIBUTES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "man": {
        "skin": _SKINS,
        "hair_colour": _HAIRS,
        "hair_style": ("short", "spiky", "curly", "bald"),
        "glasses": _GLASSES,
        "beard": ("none", "beard", "moustache"),
        "shirt_colour": _SHIRTS,
        "shirt_pattern": _PATTERNS,
        "hat": _HATS,
    },
    "woman": {
        "skin": _SKINS,
        "hair_colour": _HAIRS,
        "hair_style": ("long", "bob", "bun", "ponytail", "curly"),
        "glasses": _GLASSES,
        "shirt_colour": _SHIRTS,
        "shirt_pattern": _PATTERNS,
        "hat": _HATS,
    },
    "dog": {
        "fur": ("brown", "golden", "black", "white", "grey"),
        "marking": ("plain", "spotted", "patched"),
        "ears": ("floppy", "pointed"),
        "collar": _COLLARS,
    },
    "cat": {
        "fur": ("orange", "grey", "black", "white", "cream"),
        "marking": ("plain", "striped", "patched"),
        "collar": _COLLARS,
    },
    "robot": {
        "body": ("silver", "red", "blue", "teal", "yellow", "pink"),
        "head": ("square", "round", "domed"),
        "antenna": ("one", "two", "none"),
        "eyes": ("round", "visor"),
        "chest": ("light", "heart", "screen"),
    },
}

CLASSES = tuple(ATTRIBUTES)
PEOPLE = ("man", "woman")
# How often a class is sampled. People weigh most because users train people most often.
CLASS_WEIGHTS = {"man": 0.26, "woman": 0.26, "dog": 0.16, "cat": 0.16, "robot": 0.16}


@dataclass(frozen=True)
class Identity:
    """One character: a class, and a value for every attribute of that class."""

    class_name: str
    attributes: Mapping[str, str]

    def __getitem__(self, attribute: str) -> str:
        return self.attributes[attribute]


def count_identities(class_name: str) -> int:
    """Number of distinct identities of a class."""
    count = 1
    for values in ATTRIBUTES[class_name].values():
        count *= len(values)
    return count


def sample_identity(rng: random.Random, class_name: str | None = None) -> Identity:
    """Sample an identity; the class is sampled too if class_name is None.

    Raises ValueError for an unknown class.
    """
    if class_name is None:
        class_name = rng.choices(CLASSES, [CLASS_WEIGHTS[c] for c in CLASSES])[0]
    if class_name not in ATTRIBUTES:
        raise ValueError(f"unknown class {class_name!r}; known classes: {', '.join(CLASSES)}")
    return Identity(class_name, {k: _sample_value(rng, k, v) for k, v in ATTRIBUTES[class_name].items()})


def _sample_value(rng: random.Random, attribute: str, values: tuple[str, ...]) -> str:
    if rng.random() < NONE_PROBABILITY.get(attribute, 0.0):
        return "none"
    return rng.choice([v for v in values if v != "none"] if attribute in NONE_PROBABILITY else values)


def identity_from_seed(seed: int, class_name: str) -> Identity:
    """Return the identity of a seed; it is the same on every machine."""
    return sample_identity(random.Random(f"identity {class_name} {seed}"), class_name)


def describe_attributes(identity: Identity) -> list[str]:
    """Describe each visible attribute in words that can follow "with", in a fixed order."""
    return _DESCRIBE[identity.class_name](identity)


_HAIR_WORDS = {
    "bald": "a bald head",
    "short": "short {} hair",
    "spiky": "spiky {} hair",
    "curly": "curly {} hair",
    "long": "long {} hair",
    "bob": "a {} bob",
    "bun": "a {} bun",
    "ponytail": "a {} ponytail",
}


def _describe_person(identity: Identity) -> list[str]:
    garment = "dress" if identity.class_name == "woman" else "shirt"
    pattern = "" if identity["shirt_pattern"] == "plain" else f"{identity['shirt_pattern']} "
    hair = _HAIR_WORDS[identity["hair_style"]].format(identity["hair_colour"])
    article = "an" if identity["shirt_colour"] == "orange" else "a"
    out = [
        hair,
        f"{article} {identity['shirt_colour']} {pattern}{garment}",
        f"{identity['skin']} skin",
    ]
    if identity["glasses"] != "none":
        out.append(identity["glasses"])
    if identity.attributes.get("beard", "none") != "none":
        out.append(f"a {identity['beard']}")
    if identity["hat"] != "none":
        out.append(f"a {identity['hat']}")
    return out


def _describe_animal(identity: Identity) -> list[str]:
    marking = "" if identity["marking"] == "plain" else f"{identity['marking']} "
    out = [f"{marking}{identity['fur']} fur"]
    if "ears" in identity.attributes:
        out.append(f"{identity['ears']} ears")
    if identity["collar"] != "none":
        out.append(f"a {identity['collar']} collar")
    return out


def _describe_robot(identity: Identity) -> list[str]:
    antenna = {"one": "one antenna", "two": "two antennas", "none": "no antenna"}[identity["antenna"]]
    eyes = "round eyes" if identity["eyes"] == "round" else "a visor"
    return [
        f"a {identity['body']} body",
        f"a {identity['head']} head",
        antenna,
        eyes,
        f"a {identity['chest']} on the chest",
    ]


_DESCRIBE = {
    "man": _describe_person,
    "woman": _describe_person,
    "dog": _describe_animal,
    "cat": _describe_animal,
    "robot": _describe_robot,
}
