"""Who lives in the built-in world: classes, their attributes and the words for them."""

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

# How often an attribute stays off, so that hair and faces are seen; other values share the rest.
OFF_SHARE = {"glasses": 0.5, "hat": 0.6, "beard": 0.5}

# One literal table: class -> attribute -> the values it may take.
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
# People are what users bring most often; this only sets how often a class is drawn at random.
CLASS_WEIGHTS = {"man": 0.26, "woman": 0.26, "dog": 0.16, "cat": 0.16, "robot": 0.16}


@dataclass(frozen=True)
class Identity:
    """One inhabitant: a class and one value for each attribute of that class."""

    class_name: str
    attributes: Mapping[str, str]

    def __getitem__(self, attribute: str) -> str:
        return self.attributes[attribute]


def identity_count(class_name: str) -> int:
    """How many distinct identities a class has."""
    count = 1
    for values in ATTRIBUTES[class_name].values():
        count *= len(values)
    return count


def sample_identity(rng: random.Random, class_name: str | None = None) -> Identity:
    """Draw an identity; without a class name the class is drawn too."""
    if class_name is None:
        class_name = rng.choices(CLASSES, [CLASS_WEIGHTS[c] for c in CLASSES])[0]
    if class_name not in ATTRIBUTES:
        raise ValueError(f"unknown class {class_name!r}; the world has {', '.join(CLASSES)}")
    return Identity(class_name, {k: _draw(rng, k, v) for k, v in ATTRIBUTES[class_name].items()})


def _draw(rng: random.Random, attribute: str, values: tuple[str, ...]) -> str:
    if rng.random() < OFF_SHARE.get(attribute, 0.0):
        return "none"
    return rng.choice([v for v in values if v != "none"] if attribute in OFF_SHARE else values)


def identity_from_seed(seed: int, class_name: str) -> Identity:
    """The identity with this seed, the same on every machine."""
    return sample_identity(random.Random(f"identity {class_name} {seed}"), class_name)


def phrases(identity: Identity) -> list[str]:
    """Each visible attribute as words that fit behind "with", in a fixed order."""
    return _PHRASES[identity.class_name](identity)


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


def _person(who: Identity) -> list[str]:
    garment = "dress" if who.class_name == "woman" else "shirt"
    pattern = "" if who["shirt_pattern"] == "plain" else f"{who['shirt_pattern']} "
    hair = _HAIR_WORDS[who["hair_style"]].format(who["hair_colour"])
    article = "an" if who["shirt_colour"] == "orange" else "a"
    out = [
        hair,
        f"{article} {who['shirt_colour']} {pattern}{garment}",
        f"{who['skin']} skin",
    ]
    if who["glasses"] != "none":
        out.append(who["glasses"])
    if who.attributes.get("beard", "none") != "none":
        out.append(f"a {who['beard']}")
    if who["hat"] != "none":
        out.append(f"a {who['hat']}")
    return out


def _animal(who: Identity) -> list[str]:
    marking = "" if who["marking"] == "plain" else f"{who['marking']} "
    out = [f"{marking}{who['fur']} fur"]
    if "ears" in who.attributes:
        out.append(f"{who['ears']} ears")
    if who["collar"] != "none":
        out.append(f"a {who['collar']} collar")
    return out


def _robot(who: Identity) -> list[str]:
    antenna = {"one": "one antenna", "two": "two antennas", "none": "no antenna"}[who["antenna"]]
    eyes = "round eyes" if who["eyes"] == "round" else "a visor"
    return [
        f"a {who['body']} body",
        f"a {who['head']} head",
        antenna,
        eyes,
        f"a {who['chest']} on the chest",
    ]


_PHRASES = {"man": _person, "woman": _person, "dog": _animal, "cat": _animal, "robot": _robot}
