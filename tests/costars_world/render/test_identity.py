"""Who lives in the built-in world: many, each with words for what is seen of them."""

import random

import pytest

from costars_world.render.identity import (
    ATTRIBUTES,
    CLASS_WEIGHTS,
    CLASSES,
    PEOPLE,
    identity_count,
    identity_from_seed,
    phrases,
    sample_identity,
)


def test_there_are_five_classes_and_ten_thousand_people():
    assert {"man", "woman", "dog", "cat", "robot"} <= set(CLASSES)
    assert all(identity_count(name) > 10_000 for name in PEOPLE)
    assert sum(CLASS_WEIGHTS.values()) == pytest.approx(1) and set(CLASS_WEIGHTS) == set(CLASSES)


@pytest.mark.parametrize("class_name", CLASSES)
def test_an_identity_has_one_allowed_value_for_each_attribute(class_name):
    for seed in range(50):
        who = identity_from_seed(seed, class_name)
        assert who.class_name == class_name and set(who.attributes) == set(ATTRIBUTES[class_name])
        assert all(who[name] in values for name, values in ATTRIBUTES[class_name].items())


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_value_of_every_attribute_is_met(class_name):
    met = [identity_from_seed(seed, class_name) for seed in range(400)]
    for name, values in ATTRIBUTES[class_name].items():
        assert {who[name] for who in met} == set(values)


def test_a_seed_is_one_identity_on_every_machine():
    assert identity_from_seed(7, "woman") == identity_from_seed(7, "woman")
    assert dict(identity_from_seed(0, "dog").attributes) == {
        "fur": "grey",
        "marking": "patched",
        "ears": "pointed",
        "collar": "none",
    }


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_words_name_every_attribute_that_is_on(class_name):
    for seed in range(50):
        who = identity_from_seed(seed, class_name)
        said = " ".join(phrases(who))
        for name, value in who.attributes.items():
            if value in ("none", "plain") or (name == "hair_colour" and who["hair_style"] == "bald"):
                continue
            assert {"one": "one antenna", "two": "two antennas"}.get(value, value) in said


def test_an_unknown_class_names_the_known():
    with pytest.raises(ValueError, match="unknown class 'cow'; the world has man, woman, dog, cat, robot"):
        sample_identity(random.Random(0), "cow")
