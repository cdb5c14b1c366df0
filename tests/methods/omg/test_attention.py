"""The layout's row runs in the steps that use its attention, and in no other."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costars.errors import SceneError
from costars.methods.omg.attention import denoising_segments, end_of_share
from costars.methods.omg.options import TwoStage

SHARES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
LAYOUT, GLOBAL = SimpleNamespace(replay="latents"), SimpleNamespace(replay=None)


@given(st.floats(0, 1), st.integers(1, 60))
def test_a_share_ends_with_the_last_step_in_which_its_rule_acts(share, of):
    assert [i / of < share for i in range(of)] == [i < end_of_share(share, of) for i in range(of)]


@given(SHARES, SHARES, st.sampled_from(["replay", "device"]), st.integers(1, 40), st.data())
def test_the_layout_is_there_in_the_steps_that_use_it(cross, self_share, cache, of, data):
    start = data.draw(st.integers(0, of))
    options = TwoStage(cross_replace_steps=cross, self_replace_steps=self_share, attention_cache=cache)
    paths = [LAYOUT, GLOBAL] if max(cross, self_share) else [GLOBAL]
    cached = {(step, "layer"): None for step in range(of)} if cache == "device" else {}
    segments = denoising_segments(options, paths, start, of, cached)
    steps = [(step, segment) for segment in segments for step in range(segment.first, segment.stop)]
    assert [step for step, _ in steps] == list(range(start, of))
    for step, segment in steps:
        in_cross, in_self = step / of < cross, step / of < self_share
        from_cache = cache == "device" and in_cross and not in_self
        assert (LAYOUT in segment.paths) == (in_self or (in_cross and not from_cache))
        assert GLOBAL in segment.paths and bool(segment.cached) == from_cache


def test_cached_attention_that_lacks_a_step_is_an_error():
    options = TwoStage(attention_cache="device", self_replace_steps=0.0)
    with pytest.raises(SceneError, match=r"'device' needs a layout that was drawn in the same run"):
        denoising_segments(options, [LAYOUT, GLOBAL], 2, 5, {(3, "layer"): None, (4, "layer"): None})
