"""Attention rules: borrowed attention as in the official code, and where words look."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from costars.model.families import attention_layers
from costars.sample.attention_processor import UNetCall, attend, attention_rule
from costars.sample.attention_rules import ReplaceAttention, TokenMask, TokenReach, chain_rules
from costars.sample.word_maps import RecordWordMaps, standardize_maps
from costars.types import AttentionContext

ALL = slice(0, 4)


def heads(rows: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))


def replace_attention(**changes) -> ReplaceAttention:
    return ReplaceAttention(
        **({"source": 2, "target": 3, "cross_share": 1.0, "self_share": 0.4, "self_tokens": 64} | changes)
    )


@pytest.mark.parametrize(
    ("name", "progress", "rule"),
    [
        ("cross_and_self", 0.0, replace_attention()),
        ("cross_and_self", 0.39, replace_attention()),
        ("cross", 0.4, replace_attention()),
        ("cross", 0.98, replace_attention()),
        ("self", 0.0, replace_attention(cross_share=0.0)),
        ("plain", 0.0, replace_attention(cross_share=0.0, self_share=0.0)),
    ],
)
def test_borrowed_attention_equals_the_official_one(tiny, golden, name, progress, rule):
    told = load_file(golden / "attention.safetensors")
    call = UNetCall(progress=progress, rows=ALL)
    added = {"text_embeds": told["text_embeds"], "time_ids": told["time_ids"]}
    with torch.no_grad(), attention_rule(attention_layers(tiny.unet), rule, call):
        out = tiny.unet(told["sample"], told["timestep"], told["encoder_hidden_states"], added_cond_kwargs=added).sample
    assert torch.allclose(out, told[f"out.{name}"], atol=1e-5, rtol=0)


def test_the_target_row_has_the_source_rows_map_on_its_own_values():
    query, key, value = heads(4, 9, 0), heads(4, 5, 1), heads(4, 5, 2)
    out = replace_attention()(attend, query, key, value, AttentionContext("layer", True, 0.0, ALL))
    weights = (query[2] @ key[2].transpose(1, 2) / 8**0.5).softmax(dim=-1)
    assert torch.allclose(out[3], weights @ value[3], atol=1e-6)
    assert torch.allclose(out[:3], attend(query, key, value)[:3], atol=1e-6)


def test_the_inputs_are_not_changed():
    tensors = heads(4, 9, 0), heads(4, 9, 1), heads(4, 9, 2)
    copies = [t.clone() for t in tensors]
    replace_attention()(attend, *tensors, AttentionContext("layer", False, 0.0, ALL))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


@pytest.mark.parametrize(
    ("where", "tokens", "applies"),
    [
        (AttentionContext("layer", False, 0.39, ALL), 64, True),
        (AttentionContext("layer", False, 0.4, ALL), 64, False),
        (AttentionContext("layer", False, 0.0, ALL), 65, False),
        (AttentionContext("layer", True, 0.99, ALL), 400, True),
        (AttentionContext("layer", True, 0.0, slice(4, 8)), 64, False),
    ],
)
def test_it_applies_only_in_its_share_of_the_steps_its_layers_and_its_rows(where, tokens, applies):
    query, key, value = heads(4, tokens, 0), heads(4, tokens, 1), heads(4, tokens, 2)
    changed = not torch.equal(replace_attention()(attend, query, key, value, where), attend(query, key, value))
    assert changed == applies


def test_rows_are_counted_in_the_whole_batch_not_in_its_piece():
    query, key, value = heads(3, 9, 0), heads(3, 9, 1), heads(3, 9, 2)
    out = replace_attention()(attend, query, key, value, AttentionContext("layer", True, 0.0, slice(2, 5)))
    expected = attend(query[:1], key[:1], value[1:2])
    assert torch.allclose(out[1:2], expected, atol=1e-6)
    assert torch.allclose(out[2:], attend(query, key, value)[2:], atol=1e-6)


LEFT_HALF = torch.tensor([[1.0] * 4 + [0.0] * 4] * 8)


def kept(share: float = 1.0) -> TokenMask:
    return TokenMask({1: [TokenReach([2, 3], LEFT_HALF, share)]})


@pytest.mark.parametrize(("tokens", "side"), [(16, 4), (4, 2), (64, 8)])
def test_kept_words_give_nothing_outside_their_part_and_the_rest_is_attended_as_ever(tokens, side):
    query, key, value = heads(2, tokens, 0), heads(2, 5, 1), heads(2, 5, 2)
    out = kept()(attend, query, key, value, AttentionContext("layer", True, 0.0, slice(0, 2)))
    plain = attend(query, key, value)
    left = (torch.arange(side) < side // 2).repeat(side)
    assert torch.allclose(out[0], plain[0], atol=1e-6)
    assert torch.allclose(out[1][:, left], plain[1][:, left], atol=1e-6)
    without = attend(query[1:], key[1:, :, [0, 1, 4]], value[1:, :, [0, 1, 4]])[0]
    assert torch.allclose(out[1][:, ~left], without[:, ~left], atol=1e-6)


@pytest.mark.parametrize(
    "where",
    [
        AttentionContext("layer", False, 0.0, slice(0, 2)),
        AttentionContext("layer", True, 0.5, slice(0, 2)),
        AttentionContext("layer", True, 0.0, slice(4, 6)),
    ],
)
def test_kept_words_are_free_in_self_attention_after_their_share_and_in_other_rows(where):
    query, key, value = heads(2, 4, 0), heads(2, 5, 1), heads(2, 5, 2)
    assert torch.allclose(kept(0.5)(attend, query, key, value, where), attend(query, key, value), atol=1e-6)


def test_words_of_one_row_reach_parts_of_their_own_each_for_its_own_time():
    query, key, value = heads(1, 16, 0), heads(1, 5, 1), heads(1, 5, 2)
    rule = TokenMask({0: [TokenReach([1], LEFT_HALF, 1.0), TokenReach([3], 1 - LEFT_HALF, 0.5)]})
    left = (torch.arange(4) < 2).repeat(4)
    early, late = (
        rule(attend, query, key, value, AttentionContext("layer", True, at, slice(0, 1)))[0] for at in (0.0, 0.5)
    )
    for out, cells, seen in (
        (early, left, [0, 1, 2, 4]),
        (early, ~left, [0, 2, 3, 4]),
        (late, left, [0, 1, 2, 3, 4]),
        (late, ~left, [0, 2, 3, 4]),
    ):
        expected = attend(query, key[:, :, seen], value[:, :, seen])[0]
        assert torch.allclose(out[:, cells], expected[:, cells], atol=1e-6)


def test_a_part_smaller_than_a_coarse_cell_keeps_the_cell_it_fills_most():
    part = torch.zeros(4, 4)
    part[3, 3] = 1
    query, key, value = heads(1, 4, 0), heads(1, 3, 1), heads(1, 3, 2)
    out = TokenMask({0: [TokenReach([1], part, 1.0)]})(
        attend, query, key, value, AttentionContext("layer", True, 0.0, slice(0, 1))
    )
    same = torch.isclose(out, attend(query, key, value), atol=1e-6).all(dim=-1).all(dim=1)[0]
    assert same.tolist() == [False, False, False, True]


def test_of_both_rules_the_second_attends_as_the_first_asks():
    query, key, value = heads(4, 16, 0), heads(4, 5, 1), heads(4, 5, 2)
    where = AttentionContext("layer", True, 0.0, ALL)
    rule = chain_rules(replace_attention(), kept())
    out = rule(attend, query, key, value, where)
    assert torch.allclose(out[3], replace_attention()(attend, query, key, value, where)[3], atol=1e-6)
    assert torch.allclose(out[1], kept()(attend, query, key, value, where)[1], atol=1e-6)
    assert torch.allclose(out[[0, 2]], attend(query, key, value)[[0, 2]], atol=1e-6)


def test_the_maps_of_all_tokens_sum_to_one_in_every_cell():
    rule = RecordWordMaps(row=1, columns={str(i): [i] for i in range(5)}, size=(6, 4))
    for tokens in (24, 6):
        where = AttentionContext(f"layer of {tokens}", True, 0.0, slice(0, 2))
        rule(attend, heads(2, tokens, tokens), heads(2, 5, 1), heads(2, 5, 2), where)
    maps = np.stack(list(rule.means().values()))
    assert maps.shape == (5, 6, 4)
    assert np.allclose(maps.sum(axis=0), 1, atol=1e-5)


def test_a_words_map_is_the_mean_over_its_tokens_heads_and_calls():
    rule = RecordWordMaps(row=0, columns={"word": [1, 3]}, size=(3, 3))
    total = torch.zeros(9)
    for seed in (0, 10):
        query, key = heads(1, 9, seed), heads(1, 5, seed + 1)
        rule(attend, query, key, heads(1, 5, 2), AttentionContext("layer", True, 0.0, slice(0, 1)))
        total += (query[0] @ key[0].transpose(1, 2) / 8**0.5).softmax(dim=-1)[..., [1, 3]].mean(dim=(0, 2))
    assert np.allclose(rule.means()["word"].ravel(), total / 2, atol=1e-6)


def test_recording_does_not_change_attention_and_skips_other_rows_and_self_attention():
    rule = RecordWordMaps(row=0, columns={"word": [0]}, size=(3, 3))
    query, key, value = heads(2, 9, 0), heads(2, 9, 1), heads(2, 9, 2)
    for where in (
        AttentionContext("layer", False, 0.0, slice(0, 2)),
        AttentionContext("layer", True, 0.0, slice(2, 4)),
    ):
        assert torch.equal(rule(attend, query, key, value, where), attend(query, key, value))
    assert rule.means() == {}


def test_queries_that_fit_no_grid_of_the_picture_are_refused():
    rule = RecordWordMaps(row=0, columns={"word": [0]}, size=(4, 4))
    with pytest.raises(ValueError, match="5 queries do not fit a picture of 4 x 4 cells"):
        rule(attend, heads(1, 5, 0), heads(1, 5, 1), heads(1, 5, 2), AttentionContext("layer", True, 0.0, slice(0, 1)))


def test_only_the_layers_of_one_resolution_count_where_that_is_asked():
    rule = RecordWordMaps(row=0, columns={"man": [1]}, size=(8, 8), tokens=16)
    for layer, tokens in (("down_blocks.1", 16), ("down_blocks.0", 64), ("mid_block.0", 16), ("up_blocks.0", 16)):
        rule(
            attend, heads(1, tokens, 0), heads(1, 5, 1), heads(1, 5, 2), AttentionContext(layer, True, 0.0, slice(0, 1))
        )
    assert rule.counts == {"down_blocks.1": 1, "up_blocks.0": 1}


def test_evened_maps_count_every_layer_alike_and_leave_coarse_ones_out():
    rule = RecordWordMaps(row=0, columns={"man": [1]}, size=(8, 8), standardize=True)
    for layer, tokens, strength in (("fine", 64, 0.1), ("half", 16, 9.0), ("coarse", 4, 1.0)):
        query = strength * heads(1, tokens, tokens)
        rule(attend, query, heads(1, 5, 1), heads(1, 5, 2), AttentionContext(layer, True, 0.0, slice(0, 1)))
    assert set(rule.counts) == {"fine", "half"}
    (mean,) = rule.means().values()
    fine, half = (standardize_maps(rule.totals[layer]) for layer in ("fine", "half"))
    assert fine.std().item() == pytest.approx(1) == pytest.approx(half.std().item())
    larger = torch.nn.functional.interpolate(half[None], (8, 8), mode="bilinear", align_corners=False)[0]
    assert np.allclose(mean, ((fine + larger) / 2)[0], atol=1e-5)
