"""The objective of image recipes: masks and their weights."""

import pytest

from costars.errors import TrainError
from costars.train.loop import Progress, train


def test_attention_loss_needs_masks(small, make_task, make_subject, short_recipe, trace):
    recipe, before = short_recipe("ed-lora"), trace(small.unet)
    with pytest.raises(TrainError, match=r"an image has no mask; put NAME\.mask\.png next to each image"):
        list(train(make_task(recipe, [make_subject(recipe, masked=False)])))
    assert trace(small.unet) == before


MASKED = 20 / 64  # share of the latent cells in the subjects' masks


def test_background_weight_is_that_of_cells_outside_the_masks(make_task, make_subject, short_recipe):
    """With weights of mean 1, the sum of the weighted errors is linear in the weight of the background."""

    def loss(weight, masked=True):
        recipe = short_recipe("textual-inversion", steps=1, background_loss_weight=weight)
        events = train(make_task(recipe, [make_subject(recipe, masked=masked)]))
        (only,) = (event.loss for event in events if isinstance(event, Progress))
        return only

    inside, everywhere = loss(0.0) * MASKED, loss(1.0)
    assert everywhere == loss(1.0, masked=False) and 0 < inside < everywhere
    assert loss(0.5) * (MASKED + 0.5 * (1 - MASKED)) == pytest.approx((inside + everywhere) / 2, rel=1e-4)
