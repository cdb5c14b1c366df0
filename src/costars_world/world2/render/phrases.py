"""The words for attributes: a prefix in front of the class word, and phrases behind "with"."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from costars_world.world2.render.identity import ATTRIBUTES, CLASSES, Identity

# value -> phrase, where the phrase depends on nothing else; an empty phrase is never said.
_WORDS: Mapping[str, Mapping[str, str]] = {
    "beard": {"none": "", "beard": "a beard", "moustache": "a moustache"},
    "marking": {
        "plain": "",
        "spotted": "spots",
        "patched": "an eye patch",
        "masked": "a mask",
        "striped": "stripes",
    },
    "antenna": {"one": "one antenna", "two": "two antennas", "none": "no antenna", "dish": "a dish"},
    "flowers": {"none": "no flowers", "tulips": "tulips", "sunflowers": "sunflowers", "roses": "roses"},
}
_HAIR = {
    "bald": "a bald head",
    "bob": "a {} bob",
    "buns": "{} buns",
    "ponytail": "a {} ponytail",
    "pigtails": "{} pigtails",
}


def prefix(who: Identity) -> str:
    """The colour in front of an object's class word; empty for classes described behind "with"."""
    if "colour" in who.attributes:
        return who["colour"]
    return who["fur"] if who.class_name == "teddy" else ""


def phrases(who: Identity) -> list[str]:
    """Each visible attribute as words that fit behind "with", in a fixed order."""
    return [words for words in _PHRASES[who.class_name](who) if words]


def _worn(value: str) -> str:
    """The words for something worn, such as "a red cap"; glasses and none take no article."""
    if value == "none":
        return ""
    return value if value.endswith("glasses") else f"a {value}"


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _person(who: Identity) -> list[str]:
    garment = "dress" if who.class_name == "woman" else "shirt"
    pattern = "" if who["shirt_pattern"] == "plain" else f"{who['shirt_pattern']} "
    hair = _HAIR.get(who["hair_style"], who["hair_style"] + " {} hair").format(who["hair_colour"])
    beard = _WORDS["beard"][who.attributes.get("beard", "none")]
    return [
        hair,
        f"{who['skin']} skin",
        _worn(who["glasses"]),
        beard,
        _worn(who["hat"]),
        _worn(who["scarf"]),
        _article(f"{who['shirt_colour']} {pattern}{garment}"),
    ]


def _dog(who: Identity) -> list[str]:
    ears = f"{who['ears']} ears"
    return [
        f"{who['fur']} fur",
        _WORDS["marking"][who["marking"]],
        ears,
        _worn(who["neckwear"]),
        _worn(who["headwear"]),
    ]


def _cat(who: Identity) -> list[str]:
    eyes = f"{who['eyes']} eyes"
    return [
        f"{who['fur']} fur",
        _WORDS["marking"][who["marking"]],
        eyes,
        _worn(who["neckwear"]),
        _worn(who["headwear"]),
    ]


def _robot(who: Identity) -> list[str]:
    eyes = {"round": "round eyes", "visor": "a visor", "single": "a single eye"}[who["eyes"]]
    body, head = f"a {who['body']} body", f"a {who['head']} head"
    return [body, head, _WORDS["antenna"][who["antenna"]], eyes, f"a {who['chest']} on the chest"]


def _teddy(who: Identity) -> list[str]:
    belly = "" if who["belly"] == "plain" else f"a {who['belly']} on the belly"
    feet = "" if who["feet"] == "plain" else f"{who['feet']} feet"
    return [f"{who['ears']} ears", _worn(who["neckwear"]), belly, feet]


def _pattern(who: Identity) -> str:
    words = {
        "plain": "{} trim",
        "striped": "{} stripes",
        "dotted": "{} dots",
        "checked": "{} checks",
        "panelled": "{} panels",
        "ringed": "a {} ring",
        "zigzag": "a {} zigzag",
        "flames": "{} flames",
    }
    return words[who["pattern"]].format(who["second"])


def _emblem(who: Identity) -> str:
    return "" if who["emblem"] == "none" else f"a {who['emblem']}"


def _ball(who: Identity) -> list[str]:
    return [_pattern(who), _emblem(who)]


def _backpack(who: Identity) -> list[str]:
    return [f"a {who['shape']} shape", _pattern(who), _emblem(who)]


def _vase(who: Identity) -> list[str]:
    return [f"a {who['shape']} shape", _pattern(who), _WORDS["flowers"][who["flowers"]]]


def _chair(who: Identity) -> list[str]:
    return [f"a {who['back']} back", _pattern(who), f"{who['legs']} legs"]


def _car(who: Identity) -> list[str]:
    return [f"a {who['shape']} shape", _pattern(who), _emblem(who)]


_PHRASES: Mapping[str, Callable[[Identity], list[str]]] = {
    "man": _person,
    "woman": _person,
    "dog": _dog,
    "cat": _cat,
    "robot": _robot,
    "teddy": _teddy,
    "ball": _ball,
    "backpack": _backpack,
    "vase": _vase,
    "chair": _chair,
    "car": _car,
}


def all_phrases() -> set[str]:
    """Every phrase and prefix that some identity can have, and every class word."""
    found = set(CLASSES)
    for class_name in CLASSES:
        table = ATTRIBUTES[class_name]
        longest = max(len(values) for values in table.values())
        for turn in range(longest * longest):
            # Pairs of attributes share a phrase (hair colour and style); this visits every pair of values.
            picked = {
                name: values[(turn if k % 2 else turn // longest) % len(values)]
                for k, (name, values) in enumerate(table.items())
            }
            who = Identity(class_name, picked)
            found.update(phrases(who))
            found.add(prefix(who))
    return found
