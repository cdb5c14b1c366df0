"""Training subjects: their captions, checks and hash."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.train.data.subject import (
    TrainingSubject,
    check_subject,
    collect_class_examples,
    hash_subjects,
    make_trigger,
)
from costars.train.recipes import RECIPES

IMAGE = Image.new("RGB", (4, 4))


def make_subject(*captions: str, trigger: str = "ana", **values) -> TrainingSubject:
    examples = [Example(IMAGE, caption, name=f"{i}.png") for i, caption in enumerate(captions)]
    return TrainingSubject(name="ana", class_name="woman", trigger=trigger, examples=examples, **values)


def class_image(caption: str | None) -> Example:
    return Example(IMAGE, caption, name="a.png")


def test_make_trigger_numbers_several_words():
    assert make_trigger("ana", 1) == "<ana>" and make_trigger("ana", 2) == "<ana1> <ana2>"


def test_class_captions_are_captions_without_the_trigger():
    subject = make_subject("an ana woman", "photo of an Ana woman", "ana woman", "an ana woman", "anabel and ana")
    assert subject.class_captions() == ("a woman", "photo of a woman", "woman", "anabel and")
    assert make_subject("a <ana1> <ana2> woman", trigger="<ana1> <ana2>").class_captions() == ("a woman",)


def test_caption_without_the_trigger_is_rejected():
    recipe = RECIPES["lora"]["sdxl"]
    check_subject(make_subject("an ana woman", "ANA"), recipe)
    message = "ana: the caption of 1.png, 'an anabel woman', lacks the trigger 'ana'; insert it before 'woman'"
    with pytest.raises(TrainError, match=message):
        check_subject(make_subject("ana", "an anabel woman"), recipe)


def test_captions_contain_the_plain_text_of_the_trigger():
    recipe, subject = RECIPES["lora"]["sdxl"], make_subject("a saber (fate) woman", trigger=r"saber \(fate\)")
    check_subject(subject, recipe)
    assert subject.class_captions() == ("a woman",) and subject.trigger_words == ("saber", "(fate)")
    with pytest.raises(TrainError, match=r"'a saber woman', lacks the trigger 'saber \(fate\)'; insert it"):
        check_subject(make_subject("a saber woman", trigger=r"saber \(fate\)"), recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "name 'a b': a name has letters of any language"),
        ({"class_name": "woman\n"}, "ana: class 'woman\\n' has a line break"),
        ({"class_name": "{woman}"}, "ana: class '{woman}' has a brace"),
        ({"trigger": " "}, "ana: trigger ' ' is blank"),
        ({"trigger": "(ohwx:1.2)"}, "ana: trigger '(ohwx:1.2)' has weights or BREAK, which training does not know"),
        ({"trigger": "saber (fate)"}, "ana: trigger 'saber (fate)' has weights"),
        ({"trigger": "a BREAK b"}, "ana: trigger 'a BREAK b' has weights or BREAK"),
        ({"trigger": "[a|b]"}, "ana: trigger '[a|b]' cannot be a trigger: '[a|b]' (alternates"),
    ],
)
def test_names_and_words_that_a_scene_would_refuse_are_rejected(change, message):
    with pytest.raises(TrainError) as caught:
        check_subject(replace(make_subject("an ana woman"), **change), RECIPES["lora"]["sdxl"])
    assert str(caught.value).startswith(message)


def test_new_words_are_case_sensitive():
    check_subject(make_subject("a <ana> woman", trigger="<ana>"), RECIPES["textual-inversion"]["sdxl"])
    with pytest.raises(TrainError, match="lacks the trigger '<ana>'"):
        check_subject(make_subject("a <ANA> woman", trigger="<ana>"), RECIPES["textual-inversion"]["sdxl"])


def test_subject_without_images_is_rejected():
    with pytest.raises(TrainError, match="ana: no images; add at least one"):
        check_subject(make_subject(), RECIPES["em"]["sdxl"])


@pytest.mark.parametrize(
    ("recipe", "caption", "message"),
    [
        ("lora", "a woman", "class_images have no effect with prior_loss_weight=0; set prior_loss_weight=1, or remove"),
        ("em", "a woman", "class_images have no effect with prior_loss_weight=0; remove class_images"),
        ("dreambooth", "an Ana woman", "the class caption of a.png, 'an Ana woman', contains the trigger 'ana'"),
        ("dreambooth", None, "no class caption of a.png; describe the image without the trigger"),
    ],
)
def test_unusable_class_examples_are_rejected(recipe, caption, message):
    subject = make_subject("ana", class_examples=[class_image(caption)])
    with pytest.raises(TrainError, match=f"ana: {message}"):
        collect_class_examples([subject], RECIPES[recipe]["sdxl"])


def test_class_examples_are_given_for_all_subjects_or_none():
    recipe, given = RECIPES["dreambooth"]["sdxl"], make_subject("ana", class_examples=[class_image("a woman")])
    assert collect_class_examples([make_subject("ana")], recipe) == []
    assert collect_class_examples([given, given], recipe) == [*given.class_examples] * 2
    with pytest.raises(TrainError, match="no class_images, but another concept has some; give them for all or none"):
        collect_class_examples([given, make_subject("ana")], recipe)


def test_hash_depends_on_all_training_data():
    subject = make_subject("ana", "an ana woman")
    masked = replace(subject.examples[0], mask=np.ones((4, 4), dtype=np.float32))
    variants = [
        subject,
        replace(subject, name="bo"),
        replace(subject, class_name="man"),
        replace(subject, trigger="zxa"),
        replace(subject, background=True),
        replace(subject, class_examples=[class_image("a woman")]),
        replace(subject, examples=[masked, subject.examples[1]]),
        replace(subject, examples=[replace(subject.examples[0], image=Image.new("RGB", (4, 4), "red"))]),
    ]
    assert len({hash_subjects([variant]) for variant in variants}) == len(variants)
    assert hash_subjects([subject]) == hash_subjects([make_subject("ana", "an ana woman")])
