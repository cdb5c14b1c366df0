"""The objective of image recipes: masks and their weights."""

import pytest

from costars.errors import TrainError
from costars.train.loop import Progress, train


def test_attention_loss_needs_masks(small, make_task, make_subject, short_recipe, trace):
    recipe, before = short_recipe("ed-lora"), trace(small.unet)
    with pytest.raises(TrainError, match=r"an image has no mask; put NAME\.mask\.png next to each image"):
        list(train(make_task(recipe, [make_subject(recipe, masked=False)])))
    assert trace(small.unet) == before


def test_background_weight_applies_only_with_masks(make_task, make_subject, short_recipe):
    def losses(weight, masked=True):
        recipe = short_recipe("textual-inversion", steps=1, background_loss_weight=weight)
        events = train(make_task(recipe, [make_subject(recipe, masked=masked)]))
        return [event.loss for event in events if isinstance(event, Progress)]

    assert losses(1.0) == losses(1.0, masked=False) != losses(0.0)
