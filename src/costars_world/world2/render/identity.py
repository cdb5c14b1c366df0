"""Who lives in World 2: classes, attributes, and the exact distribution each attribute is drawn from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

SKINS = ("pale", "light", "tan", "brown", "dark")
HAIRS = ("black", "brown", "blond", "red", "white", "blue", "pink")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "teal")
SECOND_COLOURS = ("white", "black", "cream", "mint", "navy")
SHIRTS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
PATTERNS = ("plain", "striped", "dotted", "heart")
GLASSES = ("none", "round glasses", "square glasses")
HATS = ("none", "red cap", "blue beanie", "straw hat", "top hat", "gold crown")
SCARVES = ("none", "red scarf", "yellow scarf", "blue scarf")
HEADWEAR = ("none", "party hat", "gold crown", "pink flower", "blue cap")
EMBLEMS = ("none", "star", "heart", "moon", "flower", "face")

# One literal table: class -> attribute -> the values it may take.
ATTRIBUTES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "man": {
        "skin": SKINS,
        "hair_colour": HAIRS,
        "hair_style": ("short", "spiky", "curly", "bald", "long", "parted"),
        "glasses": GLASSES,
        "beard": ("none", "beard", "moustache"),
        "hat": HATS,
        "scarf": SCARVES,
        "shirt_colour": SHIRTS,
        "shirt_pattern": PATTERNS,
    },
    "woman": {
        "skin": SKINS,
        "hair_colour": HAIRS,
        "hair_style": ("long", "bob", "buns", "ponytail", "curly", "pigtails"),
        "glasses": GLASSES,
        "hat": (*HATS, "pink bow"),
        "scarf": SCARVES,
        "shirt_colour": SHIRTS,
        "shirt_pattern": PATTERNS,
    },
    "dog": {
        "fur": ("brown", "golden", "black", "white", "grey", "red"),
        "marking": ("plain", "spotted", "patched", "masked"),
        "ears": ("floppy", "pointed", "round"),
        "neckwear": ("none", "red collar", "blue bandana", "green scarf", "yellow bow"),
        "headwear": HEADWEAR,
    },
    "cat": {
        "fur": ("orange", "grey", "black", "white", "cream", "brown"),
        "marking": ("plain", "striped", "patched", "masked"),
        "eyes": ("green", "yellow", "blue"),
        "neckwear": ("none", "red collar", "blue bow", "green scarf"),
        "headwear": HEADWEAR,
    },
    "robot": {
        "body": ("silver", "red", "blue", "teal", "yellow", "pink", "green", "purple"),
        "head": ("square", "round", "domed"),
        "antenna": ("one", "two", "none", "dish"),
        "eyes": ("round", "visor", "single"),
        "chest": ("light", "heart", "screen", "gear", "star"),
    },
    "teddy": {
        "fur": ("brown", "honey", "cream", "white", "pink", "blue", "grey"),
        "neckwear": ("none", "red bow", "blue bow", "yellow bow", "red scarf", "blue scarf", "green scarf"),
        "belly": ("plain", "heart", "star", "flower", "moon"),
        "feet": ("plain", "white", "pink", "blue"),
        "ears": ("small", "big"),
    },
    "ball": {
        "colour": COLOURS,
        "second": SECOND_COLOURS,
        "pattern": ("striped", "panelled", "dotted", "ringed", "checked"),
        "emblem": EMBLEMS,
    },
    "backpack": {
        "colour": COLOURS,
        "second": SECOND_COLOURS,
        "pattern": ("plain", "striped", "dotted", "checked"),
        "emblem": EMBLEMS,
        "shape": ("round", "square"),
    },
    "vase": {
        "colour": COLOURS,
        "second": SECOND_COLOURS,
        "pattern": ("plain", "striped", "dotted", "zigzag"),
        "shape": ("round", "tall", "wide"),
        "flowers": ("none", "tulips", "sunflowers", "roses"),
    },
    "chair": {
        "colour": COLOURS,
        "second": SECOND_COLOURS,
        "pattern": ("plain", "striped", "dotted", "checked"),
        "back": ("round", "square", "slatted", "heart"),
        "legs": ("wooden", "metal"),
    },
    "car": {
        "colour": COLOURS,
        "second": SECOND_COLOURS,
        "pattern": ("plain", "striped", "dotted", "flames"),
        "shape": ("round", "sporty", "boxy"),
        "emblem": EMBLEMS,
    },
}

CLASSES = tuple(ATTRIBUTES)
PEOPLE = ("man", "woman")
HANDED = ("man", "woman", "robot")  # classes with arms and hands
LIVING = ("man", "woman", "dog", "cat", "robot")  # classes with a pose
OBJECTS = ("teddy", "ball", "backpack", "vase", "chair", "car")

# How often a class is drawn where nothing else decides; the weights sum to 1.
CLASS_WEIGHTS: Mapping[str, float] = {
    "man": 0.22,
    "woman": 0.22,
    "dog": 0.12,
    "cat": 0.12,
    "robot": 0.11,
    "teddy": 0.04,
    "ball": 0.035,
    "backpack": 0.035,
    "vase": 0.035,
    "chair": 0.03,
    "car": 0.035,
}

# How often an attribute takes the value "none"; the other values share the rest evenly.
OFF_SHARE: Mapping[str, float] = {
    "glasses": 0.55,
    "hat": 0.55,
    "beard": 0.5,
    "scarf": 0.6,
    "headwear": 0.6,
}


@dataclass(frozen=True)
class Identity:
    """One inhabitant: a class and one value for each attribute of that class."""

    class_name: str
    attributes: Mapping[str, str] = field(hash=False)

    def __getitem__(self, attribute: str) -> str:
        return self.attributes[attribute]


def attribute_distribution(class_name: str) -> dict[str, dict[str, float]]:
    """The exact probability of every value of every attribute of a class; attributes are independent."""
    table: dict[str, dict[str, float]] = {}
    for attribute, values in ATTRIBUTES[class_name].items():
        off = OFF_SHARE.get(attribute)
        if off is None:
            table[attribute] = dict.fromkeys(values, 1 / len(values))
        else:
            table[attribute] = {v: off if v == "none" else (1 - off) / (len(values) - 1) for v in values}
    return table


def identity_count(class_name: str) -> int:
    """How many distinct identities a class has."""
    count = 1
    for values in ATTRIBUTES[class_name].values():
        count *= len(values)
    return count


def sample_class(rng: random.Random, among: tuple[str, ...] = CLASSES) -> str:
    """Draw a class by its weight from the given classes."""
    return rng.choices(among, [CLASS_WEIGHTS[c] for c in among])[0]


def sample_identity(rng: random.Random, class_name: str | None = None) -> Identity:
    """Draw an identity; without a class name the class is drawn too.

    Raises ValueError for a class that the world does not have.
    """
    if class_name is None:
        class_name = sample_class(rng)
    if class_name not in ATTRIBUTES:
        raise ValueError(f"unknown class {class_name!r}; the world has {', '.join(CLASSES)}")
    drawn = {}
    for attribute, shares in _DISTRIBUTIONS[class_name].items():
        drawn[attribute] = rng.choices(list(shares), list(shares.values()))[0]
    return Identity(class_name, drawn)


_DISTRIBUTIONS = {class_name: attribute_distribution(class_name) for class_name in CLASSES}
