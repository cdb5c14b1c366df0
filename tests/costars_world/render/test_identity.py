"""Identities are valid, distinct, reproducible and described in words."""

import random

import pytest

from costars_world.render.identity import (
    ATTRIBUTES,
    CLASS_WEIGHTS,
    CLASSES,
    PEOPLE,
    count_identities,
    describe_attributes,
    identity_from_seed,
    sample_identity,
)


def test_classes_have_weights_and_people_many_identities():
    assert {"man", "woman", "dog", "cat", "robot"} <= set(CLASSES)
    assert all(count_identities(name) > 10_000 for name in PEOPLE)
    assert sum(CLASS_WEIGHTS.values()) == pytest.approx(1) and set(CLASS_WEIGHTS) == set(CLASSES)


@pytest.mark.parametrize("class_name", CLASSES)
def test_identity_has_an_allowed_value_for_each_attribute(class_name):
    for seed in range(50):
        identity = identity_from_seed(seed, class_name)
        assert identity.class_name == class_name and set(identity.attributes) == set(ATTRIBUTES[class_name])
        assert all(identity[name] in values for name, values in ATTRIBUTES[class_name].items())


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_value_of_every_attribute_occurs(class_name):
    identities = [identity_from_seed(seed, class_name) for seed in range(400)]
    for name, values in ATTRIBUTES[class_name].items():
        assert {identity[name] for identity in identities} == set(values)


def test_seed_determines_the_identity():
    assert identity_from_seed(7, "woman") == identity_from_seed(7, "woman")
    assert dict(identity_from_seed(0, "dog").attributes) == {
        "fur": "grey",
        "marking": "patched",
        "ears": "pointed",
        "collar": "none",
    }


@pytest.mark.parametrize("class_name", CLASSES)
def test_description_names_every_visible_attribute(class_name):
    for seed in range(50):
        identity = identity_from_seed(seed, class_name)
        description = " ".join(describe_attributes(identity))
        for name, value in identity.attributes.items():
            if value in ("none", "plain") or (name == "hair_colour" and identity["hair_style"] == "bald"):
                continue
            assert {"one": "one antenna", "two": "two antennas"}.get(value, value) in description


def test_unknown_class_is_rejected():
    with pytest.raises(ValueError, match="unknown class 'cow'; known classes: man, woman, dog, cat, robot"):
        sample_identity(random.Random(0), "cow")
