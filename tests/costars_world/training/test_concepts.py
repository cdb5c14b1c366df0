"""The concept pack: its identities, training subjects and recipes."""

from pathlib import Path

import costars
from costars_world.training.concepts import PACK, RECIPE, RECIPE_OVERRIDES, make_subject, recipe_for

WEIGHTS = Path(costars.__file__).parent / "builtin" / "weights"


def test_pack_has_two_men_three_women_a_dog_a_cat_and_a_robot():
    classes = [identity.class_name for identity in PACK.values()]
    assert {name: classes.count(name) for name in set(classes)} == {
        "man": 2,
        "woman": 3,
        "dog": 1,
        "cat": 1,
        "robot": 1,
    }


def test_captions_have_the_trigger_before_the_class():
    subject = make_subject("rex")
    assert 8 <= len(subject.examples) <= 12
    captions = [example.caption or "" for example in subject.examples]
    assert all(caption.count("a rex dog") == caption.count("rex") == caption.count("dog") == 1 for caption in captions)
    assert all(caption.startswith("a rex dog ") for caption in captions[::2])  # alone


def test_trigger_can_be_set():
    subject = make_subject("rex", "<a> <b>")
    assert subject.trigger == "<a> <b>" and all("<a> <b> dog" in (e.caption or "") for e in subject.examples)


def test_overrides_change_the_recipe_of_their_concept_only():
    assert recipe_for("ana") == RECIPE
    for name, fields in RECIPE_OVERRIDES.items():
        assert all(getattr(recipe_for(name), key) == value for key, value in fields.items())
