"""Merging custom-diffusion concepts: exact on their own words, close to the base model elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costars.errors import TrainError
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.offload import Offload
from costars.train import merge_custom_diffusion
from costars.train.loop import train
from costars.train.merge_custom_diffusion import merge_concepts, solve_weights
from costars.train.recipes import RECIPES
from costars.types import Concept


@given(st.integers(0, 2**31))
def test_solution_is_exact_on_features_and_closest_to_the_base(seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base, features, regularization, targets = random(5, 8), random(3, 8), random(40, 8), random(5, 3)
    solution = solve_weights(base, features, targets, regularization, ridge=0.0)
    assert torch.allclose(solution @ features.T, targets)
    # Any other solution differs from this one by a matrix that the features do not see.
    unseen = torch.eye(8, dtype=torch.float64) - features.T @ torch.linalg.pinv(features.T)
    other = solution + 0.1 * random(5, 8) @ unseen
    assert torch.allclose(other @ features.T, targets)
    distance = ((solution - base) @ regularization.T).norm()
    assert distance <= ((other - base) @ regularization.T).norm() + 1e-9


def test_merged_concepts_share_weights_that_keep_their_words(small, make_subject, make_task):
    recipe = replace(
        RECIPES["custom-diffusion"]["builtin"], steps=2, prior_loss_weight=0.0, num_class_images=0, unet_lr=0.05
    )
    concepts = []
    for name, class_name in (("mia", "woman"), ("rex", "man")):
        *_, result = train(make_task(recipe, [make_subject(recipe, name, class_name)]))
        concepts += result.concepts
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
            own_output = features @ concept.weights[path].T
            assert torch.allclose(features @ weight.T, own_output, atol=1e-3)
            assert not torch.allclose(features @ base.T, own_output, atol=1e-3)


@pytest.fixture(scope="module")
def replaced_keys(tiny):
    """Two concepts that replace one layer's keys and values."""
    prefix = "mid_block.attentions.0.transformer_blocks.0.attn2"
    modules, concepts = dict(tiny.unet.named_modules()), []
    for seed, name in enumerate(("ana", "rex")):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for path in (f"{prefix}.to_k", f"{prefix}.to_v"):
            weights[f"unet.{path}"] = torch.randn(modules[path].weight.shape, generator=generator)
        concepts.append(Concept(name, "dog", name, "sdxl", {}, name, "", weights=weights))
    return concepts


CAPTIONS = ["a photo of the forest", "a cat", "a street at night"]


@pytest.mark.parametrize("memory", ["offload", "sequential"])
def test_merged_weights_are_equal_in_every_memory_tier(tiny, golden, replaced_keys, memory):
    model = load_model(Source("tiny", golden / "tiny-sdxl"), torch.device("cpu"), torch.float32, memory=memory)
    merged, expected = (merge_concepts(each, replaced_keys, CAPTIONS)[0].weights for each in (model, tiny))
    assert len(expected) == 2 and all(torch.equal(merged[path], expected[path]) for path in expected)


def test_everything_is_solved_on_the_cpu_in_float64(golden, replaced_keys, monkeypatch):
    """With weights on the CPU, and text that is encoded on the meta device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
        from kernel_counts import META, CountOperations
    solved = []

    def solve(*tensors, ridge):
        solved.extend((tensor.device.type, tensor.dtype) for tensor in tensors)
        return solve_weights(*tensors, ridge=ridge)

    monkeypatch.setattr(merge_custom_diffusion, "solve_weights", solve)
    model = load_model(Source("tiny", golden / "tiny-sdxl"), torch.device("cpu"), torch.bfloat16, memory="offload")
    with CountOperations():
        model = replace(model, device=META, offload=Offload("offload", META))
        merged = merge_concepts(model, replaced_keys, CAPTIONS)
    assert {*solved} == {("cpu", torch.float64)}
    assert all(weight.device.type == "cpu" for weight in merged[0].weights.values())


def test_concepts_with_other_layers_are_rejected(small, make_task):
    recipe = replace(RECIPES["textual-inversion"]["builtin"], steps=1)
    *_, result = train(make_task(recipe))
    (concept,) = result.concepts
    other = replace(concept, weights={"unet.x": torch.ones(2, 2)})
    with pytest.raises(
        TrainError, match=r"mia: has full weights of 0 layers, mia of 1, .*; merge concepts that custom"
    ):
        merge_concepts(small, [other, concept], ["a cat"])
    with pytest.raises(TrainError, match="mia: has full weights of 0 layers"):
        merge_concepts(small, [concept, concept], ["a cat"])
