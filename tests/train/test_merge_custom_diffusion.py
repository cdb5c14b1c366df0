"""The closed form: exact on the concepts' words, near the base elsewhere."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costars.errors import TrainError
from costars.train.loop import train
from costars.train.task import TrainingTask
from costars.train.merge_custom_diffusion import merge_concepts, solve_weights
from costars.train.recipes import RECIPES


@given(st.integers(0, 2**31))
def test_what_was_taught_is_kept_and_the_rest_differs_least(seed):
    draw = torch.Generator().manual_seed(seed)
    base, own, kept = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((5, 8), (3, 8), (40, 8)))
    wanted = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    found = solve_weights(base, own, wanted, kept, ridge=0.0)
    assert torch.allclose(found @ own.T, wanted)
    away = (found - base) @ kept.T
    # Any other solution differs from this one by something that own's words do not see.
    unseen = torch.eye(8, dtype=torch.float64) - own.T @ torch.linalg.pinv(own.T)
    other = found + 0.1 * torch.randn(5, 8, generator=draw, dtype=torch.float64) @ unseen
    assert torch.allclose(other @ own.T, wanted)
    assert away.norm() <= ((other - base) @ kept.T).norm() + 1e-9


def test_two_concepts_get_one_set_of_weights(small, teaching):
    recipe = replace(
        RECIPES["custom-diffusion"]["builtin"], steps=2, prior_loss_weight=0.0, num_class_images=0, unet_lr=0.05
    )
    concepts = []
    for name, class_name in (("mia", "woman"), ("rex", "man")):
        *_, taught = train(TrainingTask(small, [teaching(recipe, name, class_name)], recipe))
        concepts += taught.concepts
    one, other = merge_concepts(small, concepts, ["a photo of the forest", "a cat", "a street at night"])
    assert one.weights is other.weights and (one.name, other.name) == ("mia", "rex")
    assert one.tokens.keys() == {"<mia>"} and one.weights.keys() == concepts[0].weights.keys()
    modules = dict(small.unet.named_modules())
    for path, weight in one.weights.items():
        base = modules[path.removeprefix("unet.")].weight
        for concept in concepts:
            words = f"{concept.trigger} {concept.class_name}"
            text = small.encode_text(f"a {words}", [words], learned=concept.words)
            features = text.tokens[0, list(text.spans[words][0])]
            as_taught = features @ concept.weights[path].T
            assert torch.allclose(features @ weight.T, as_taught, atol=1e-3)
            assert not torch.allclose(features @ base.T, as_taught, atol=1e-3)


def test_concepts_of_other_layers_are_refused(small, teaching):
    recipe = replace(RECIPES["textual-inversion"]["builtin"], steps=1)
    *_, word = train(TrainingTask(small, [teaching(recipe)], recipe))
    (concept,) = word.concepts
    other = replace(concept, weights={"unet.x": torch.ones(2, 2)})
    with pytest.raises(TrainError, match=r"mia: has 0 whole layers, mia 1; merge concepts that custom-diffusion"):
        merge_concepts(small, [other, concept], ["a cat"])
    with pytest.raises(TrainError, match="mia: has 0 whole layers"):
        merge_concepts(small, [concept, concept], ["a cat"])
