"""Captions for subsets of an image's concepts."""

from costars.train.em.captions import make_caption

PHRASES = {"ana": "<ana> woman", "rex": "<rex> dog", "m": "<m> park"}


def test_caption_names_the_concepts():
    assert make_caption(("ana", "rex"), PHRASES, "a photo of {}") == "a photo of a <ana> woman and a <rex> dog"
    assert make_caption(("ana", "rex", "ana"), PHRASES, "{}") == "a <ana> woman, a <rex> dog and a <ana> woman"


def test_caption_names_the_background_last():
    assert make_caption(("ana", "rex", "m"), PHRASES, "{}", "m") == "a <ana> woman and a <rex> dog in a <m> park"
    assert make_caption(("m",), PHRASES, "a photo of {}", "m") == "a photo of a <m> park"


def test_token_positions_are_those_of_each_concept(open_objective):
    captions = open_objective().captions
    (ana, rex), (rex_alone,) = captions.token_positions([("ana", "rex"), ("rex",)])
    assert ana and rex and not {*ana} & {*rex}
    assert rex_alone and rex_alone != rex  # the caption without ana is shorter


def test_all_subsets_of_each_image_have_a_caption(open_objective):
    assert {*open_objective().captions.indices} == {("ana",), ("rex",), ("ana", "rex")}
