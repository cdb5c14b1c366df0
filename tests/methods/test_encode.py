"""What a scene's fields decide about its encoded prompts."""

import pytest
import torch

from costars.methods.encode import encode_negative, encode_prompt
from costars.records.layout_inputs import same_layout
from costars.records.png_metadata import EMPHASIS_NAMES, dump
from costars.resolve import resolve_scene

WEIGHTED = "photo of a (man:1.5)"


@pytest.fixture
def resolve(tiny, concepts, make_scene):
    return lambda **changes: resolve_scene(make_scene(**changes), tiny, concepts)


@pytest.mark.parametrize("emphasis", ["original", "no_norm", "ignore"])
def test_emphasis_of_the_scene_is_that_of_every_prompt(tiny, resolve, emphasis):
    made = resolve(emphasis=emphasis)
    expected = tiny.encode_text(WEIGHTED, emphasis=emphasis)
    assert torch.equal(encode_prompt(made, WEIGHTED).tokens, expected.tokens)
    assert torch.equal(encode_negative(made, WEIGHTED).tokens, expected.tokens)


def test_emphasis_is_no_norm_by_default_and_recorded(tiny, resolve):
    made = resolve()
    assert torch.equal(encode_prompt(made, WEIGHTED).tokens, tiny.encode_text(WEIGHTED, emphasis="no_norm").tokens)
    assert dump(made.scene)["emphasis"] == "no_norm" and EMPHASIS_NAMES[made.scene.emphasis] == "No norm"
    original, no_norm, ignored = (tiny.encode_text(WEIGHTED, emphasis=name).tokens for name in EMPHASIS_NAMES)
    assert not torch.equal(original, no_norm) and not torch.equal(no_norm, ignored)


@pytest.mark.parametrize(("field", "zeros"), [(None, True), (True, True), (False, False)])
def test_empty_negative_prompt_is_zeros_or_encoded_as_the_scene_says(tiny, resolve, field, zeros):
    """The tiny checkpoint asks for zeros; false is what the official code of OMG does."""
    made = resolve(force_zeros_for_empty_prompt=field)
    for prompt in (None, "", " "):
        negative = encode_negative(made, prompt)
        expected = tiny.encode_text(prompt or "").tokens
        assert torch.equal(negative.tokens, torch.zeros_like(expected) if zeros else expected)
        assert bool(negative.pooled.any()) != zeros
    assert encode_negative(made, "blurry").tokens.any()
    assert encode_negative(resolve(guidance_scale=1.0)) is None


@pytest.mark.parametrize("change", [{"emphasis": "original"}, {"force_zeros_for_empty_prompt": False}])
def test_a_layout_depends_on_both_fields(make_scene, change):
    assert same_layout(make_scene(), make_scene()) and not same_layout(make_scene(), make_scene(**change))
