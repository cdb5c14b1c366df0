"""Phrases are deduplicated, and depths follow how low a region reaches."""

import pytest

from costars.errors import SceneError
from costars.segment.regions import assign_depths, unique_phrases


def test_repeated_phrases_are_removed():
    assert unique_phrases(["woman", "dog", "woman"]) == ["woman", "dog"]


def test_phrase_without_a_word_is_rejected():
    with pytest.raises(SceneError, match="phrase '--' contains no word; name what to find"):
        unique_phrases(["woman", "--"])


def test_lower_regions_are_nearer_and_the_larger_of_two_equally_low(make_region):
    boxes = [(0.3, 0.5, 0.4, 1.0), (0.0, 0.1, 0.2, 0.7), (0.5, 0.2, 0.9, 1.0), (0.6, 0.0, 0.9, 0.3)]
    assert [region.depth for region in assign_depths([make_region("man", box) for box in boxes])] == [1, 2, 0, 3]
