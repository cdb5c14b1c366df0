"""Identities of World 2: every value is reachable, and rates follow the listed distributions."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from costars_world.world2.render.identity import (
    ATTRIBUTES,
    CLASS_WEIGHTS,
    CLASSES,
    OBJECTS,
    Identity,
    attribute_distribution,
    identity_count,
    sample_identity,
)
from costars_world.world2.render.scene import sample_scene


def test_class_weights_sum_to_one() -> None:
    assert sum(CLASS_WEIGHTS.values()) == pytest.approx(1.0)
    assert set(CLASS_WEIGHTS) == set(CLASSES)


@pytest.mark.parametrize("class_name", CLASSES)
def test_at_least_a_thousand_identities(class_name: str) -> None:
    assert identity_count(class_name) >= 1000


@pytest.mark.parametrize("class_name", CLASSES)
def test_rates_follow_the_distribution(class_name: str) -> None:
    rng = random.Random(0)
    drawn = [sample_identity(rng, class_name) for _ in range(4000)]
    for attribute, shares in attribute_distribution(class_name).items():
        counts = Counter(who[attribute] for who in drawn)
        assert set(counts) == set(ATTRIBUTES[class_name][attribute])
        distance = sum(abs(counts[value] / len(drawn) - share) for value, share in shares.items()) / 2
        assert distance < 0.04


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_value_changes_the_picture(class_name: str) -> None:
    base = {attribute: values[0] for attribute, values in ATTRIBUTES[class_name].items()}
    base |= {k: "one" for k in base if k == "antenna"}

    def pixels(attributes: dict[str, str]) -> bytes:
        cast = [Identity(class_name, attributes)]
        return sample_scene(1, cast=cast, place="park", action="standing", truth=False).image.tobytes()

    for attribute, values in ATTRIBUTES[class_name].items():
        pictures = {pixels(base | {attribute: value}) for value in values}
        assert len(pictures) == len(values), attribute


def test_objects_are_at_least_six() -> None:
    assert len(OBJECTS) >= 6
    assert set(OBJECTS) <= set(CLASSES)


def test_unknown_class() -> None:
    with pytest.raises(ValueError, match="unknown class 'horse'"):
        sample_identity(random.Random(0), "horse")
