"""Adapters: one per row equals one at a time in peft, and nothing is left behind."""

import gc
import weakref

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from costars.errors import ConceptError
from costars.model.adapters import concatenate_adapters, scale_adapter, subtract_base_weights
from costars.model.full_change import FullLayer
from costars.model.lora import RowRun, group_rows, one_adapter_per_row, text_adapter
from costars.types import FullChange, LowRank, WeightRule

ROWS = [None, "a", "b", "a"]


def unet_call(unet, model, sample, texts):
    added = {
        "text_embeds": torch.cat([t.pooled for t in texts]),
        "time_ids": model.size_ids((64, 64)).expand(len(texts), -1),
    }
    with torch.no_grad():
        return unet(sample, torch.tensor(300), torch.cat([t.tokens for t in texts]), added_cond_kwargs=added).sample


@pytest.fixture
def batch(tiny):
    sample = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return sample, [tiny.encode_text(p) for p in ("a man", "a man in the forest", "a woman", "smiling")]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of diffusers, on loading a second
def test_rows_equal_sequential_runs_with_peft(tiny, pipeline, concepts, golden, batch):
    sample, texts = batch
    for name in ("a", "b"):
        pipeline.load_lora_weights(golden / f"char_{name}.safetensors", adapter_name=name)
    expected = []
    for i, name in enumerate(ROWS):
        if name is None:
            pipeline.disable_lora()
        else:
            pipeline.enable_lora()
            pipeline.set_adapters([name])
        expected.append(unet_call(pipeline.unet, tiny, sample[i : i + 1], texts[i : i + 1]))
    own = {n: c.adapter for n, c in concepts.items()}
    with one_adapter_per_row(tiny.unet, "unet.", own) as adapters, adapters.on(ROWS):
        rows = unet_call(tiny.unet, tiny, sample, texts)
    assert torch.allclose(rows, torch.cat(expected), atol=1e-5, rtol=0)
    assert (rows - unet_call(tiny.unet, tiny, sample, texts)).abs().amax(dim=(1, 2, 3))[1:].min() > 1e-3


def test_rows_can_change_between_calls(tiny, concepts, batch):
    sample, texts = batch
    with one_adapter_per_row(tiny.unet, "unet.", {n: c.adapter for n, c in concepts.items()}) as adapters:
        with adapters.on(ROWS):
            first = unet_call(tiny.unet, tiny, sample, texts)
        with adapters.on(ROWS[::-1]):
            swapped = unet_call(tiny.unet, tiny, sample.flip(0), texts[::-1])
        with adapters.on([None] * 4):
            base = unet_call(tiny.unet, tiny, sample, texts)
        assert torch.equal(unet_call(tiny.unet, tiny, sample, texts), base)
    assert torch.allclose(swapped.flip(0), first, atol=1e-5)
    assert torch.equal(base, unet_call(tiny.unet, tiny, sample, texts))


def test_block_leaves_modules_unchanged_also_after_an_error(tiny, concepts, trace):
    parts = (tiny.unet, *(e.module for e in tiny.encoders))
    before = [trace(p) for p in parts]
    adapter = concepts["a"].adapter
    with one_adapter_per_row(tiny.unet, "unet.", {"a": adapter}), text_adapter(tiny.encoders, adapter):
        assert all(trace(p)["hooks"] != b["hooks"] for p, b in zip(parts, before, strict=True))
    assert [trace(p) for p in parts] == before
    with (
        pytest.raises(ArithmeticError),
        one_adapter_per_row(tiny.unet, "unet.", {"a": adapter}),
        text_adapter(tiny.encoders, adapter),
    ):
        raise ArithmeticError
    assert [trace(p) for p in parts] == before


@pytest.mark.parametrize("fails", [False, True])
def test_adapters_die_when_the_block_ends(fails, monkeypatch):
    """Without the garbage collector, and while the exception with its traceback is still referred to."""
    attention = nn.ModuleDict({name: nn.Linear(6, 5) for name in ("to_q", "to_k", "to_v")})
    attention["conv"] = nn.Conv2d(6, 5, 1)
    convolution = LowRank(torch.randn(2, 6, 1, 1), torch.randn(5, 2, 1, 1))
    adapter = {f"m.{name}": convolution if name == "conv" else low_rank(2, 0) for name in attention}
    references, error = [], None
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), one_adapter_per_row(attention, "m.", {"a": adapter}) as state, state.on(["a"]):
            x = torch.randn(1, 4, 6)
            attention["to_q"](x)  # the product that the other two could use is still there
            attention["conv"](torch.randn(1, 6, 4, 4))
            for module in attention.values():
                (layer,) = module._forward_hooks.values()
                references += [weakref.ref(tensor) for tensor in (layer.down, layer.up)]
            (projection,) = state.projections
            references += [weakref.ref(tensor) for tensor in projection.products]
            del module, layer, projection
            assert len(references) == 9 and all(reference() is not None for reference in references)
            if fails:
                raise MemoryError
    except MemoryError as caught:
        error = caught
    finally:
        gc.enable()
    assert [reference() for reference in references] == [None] * len(references) and (error is not None) == fails


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ([None, None, "a", "a", "b", "b"], [RowRun(2, 6, 0, 2)]),
        (["a", "b", "b"], [RowRun(0, 1, 0, 1), RowRun(1, 3, 1, 2)]),
        (["b", "a", None, "b", "c"], [RowRun(0, 1, 1, 2), RowRun(1, 2, 0, 1), RowRun(3, 4, 1, 2)]),
        ([None, "c"], []),
    ],
)
def test_rows_are_grouped_into_few_runs(rows, runs):
    assert group_rows(tuple(rows), ("a", "b")) == tuple(runs)


@pytest.mark.parametrize(
    ("path", "size", "message"),
    [
        ("down_blocks.9.to_q", (8, 8), "changes layer 'down_blocks.9.to_q', which this model does not have"),
        ("mid_block", (8, 8), "'mid_block', which this model does not have"),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            (320, 320),
            "is 320 -> 320, the model's is 48 -> 48; it was made for another base model",
        ),
    ],
)
def test_adapter_that_does_not_fit_is_rejected(tiny, concepts, trace, path, size, message):
    wrong = {f"unet.{path}": LowRank(torch.ones(2, size[0]), torch.ones(size[1], 2))}
    before = trace(tiny.unet)
    with (
        pytest.raises(ConceptError, match="concept 'mine'") as caught,
        one_adapter_per_row(tiny.unet, "unet.", {"a": concepts["a"].adapter, "mine": wrong}),
    ):
        pass
    assert message in str(caught.value)
    assert trace(tiny.unet) == before


def low_rank(rank: int, seed: int, inside: int = 6, outside: int = 5) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, inside, generator=generator), torch.randn(outside, rank, generator=generator))


def change(layer: nn.Module, adapters: dict, rows: list, x: torch.Tensor) -> torch.Tensor:
    """What the adapters add to the output of a layer named "layer"."""
    module = nn.ModuleDict({"layer": layer})
    with torch.no_grad(), one_adapter_per_row(module, "m.", adapters) as state:
        plain = layer(x)
        with state.on(rows):
            return layer(x) - plain


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
def test_concatenated_adapter_is_the_sum(ranks, seed):
    parts = [{"m.layer": low_rank(rank, seed + i)} for i, rank in enumerate(ranks)]
    layer, x = nn.Linear(6, 5), torch.randn(1, 7, 6)
    together = change(layer, {"all": concatenate_adapters(parts)}, ["all"], x)
    alone = sum(change(layer, {"one": p}, ["one"], x) for p in parts)
    assert torch.allclose(together, alone, atol=1e-4)


def test_concatenation_keeps_layers_of_one_part_only():
    joined = concatenate_adapters([{"m.x": low_rank(2, 0)}, {"m.y": low_rank(3, 1)}, {"m.x": low_rank(1, 2)}])
    assert {path: len(entry.down) for path, entry in joined.items()} == {"m.x": 3, "m.y": 3}


@given(st.floats(0, 4), st.lists(st.integers(1, 5), min_size=2, max_size=3))
def test_rows_use_their_own_adapter_of_any_rank_and_scale(weight, ranks):
    adapters = {str(i): scale_adapter({"m.layer": low_rank(rank, i)}, weight) for i, rank in enumerate(ranks)}
    x = torch.randn(len(ranks) + 1, 4, 6)
    out = change(nn.Linear(6, 5), adapters, [None, *adapters], x)
    assert torch.equal(out[0], torch.zeros(4, 5))
    for i, rank in enumerate(ranks):
        entry = low_rank(rank, i)
        assert torch.allclose(out[i + 1], weight * (x[i + 1] @ entry.down.T @ entry.up.T), atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_adapted_convolution_equals_merged_weights(stride):
    down, up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    layer, x = nn.Conv2d(3, 4, 3, stride, 1, bias=False), torch.randn(2, 3, 8, 8)
    out = change(layer, {"a": {"m.layer": LowRank(down, up)}}, ["a", None], x)
    merged = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    expected = nn.functional.conv2d(x, merged, stride=stride, padding=1)
    assert torch.allclose(out[0], expected[0], atol=1e-4)
    assert torch.equal(out[1], torch.zeros_like(out[1]))


def test_batch_of_unexpected_size_is_rejected():
    with pytest.raises(ValueError, match="adapters are set for 1 rows, the call has 2"):
        change(nn.Linear(6, 5), {"a": {"m.layer": low_rank(2, 0)}}, ["a"], torch.randn(2, 4, 6))


@pytest.mark.parametrize(("layer", "entry"), [
    (nn.Linear(6, 5), LowRank(torch.ones(2, 6, 1, 1), torch.ones(5, 2, 1, 1))),
    (nn.Conv2d(6, 5, 3), LowRank(torch.ones(2, 6), torch.ones(5, 2))),
])  # fmt: skip
def test_convolution_adapter_does_not_fit_linear_layer_or_reverse(layer, entry):
    with (
        pytest.raises(ConceptError, match="made for another base model"),
        one_adapter_per_row(nn.ModuleDict({"layer": layer}), "m.", {"a": {"m.layer": entry}}),
    ):
        pass


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5), nn.Linear(5, 6), nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 3, 3, 2, 1), nn.Conv2d(3, 4, 1)],
    ids=["narrow", "wide", "convolution", "downsampler", "shortcut"],
)
def test_full_weight_is_applied_exactly(layer):
    weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    module, x = nn.ModuleDict({"layer": layer}), torch.randn(2, *((7, 7) if weight.ndim == 4 else ()), weight.shape[1])
    x = x.movedim(-1, 1) if weight.ndim == 4 else x
    adapter = subtract_base_weights({"m.layer": weight}, {"m": module}, "mine")
    (((rule, scale),),) = (adapter["m.layer"].parts,)
    assert rule.tensors["weight"] is weight and scale == 1  # nothing is copied from the model
    out = change(layer, {"a": adapter}, ["a", None], x)
    with torch.no_grad():
        before = layer(x)
        old = layer.weight.detach().clone()
        layer.weight.copy_(weight)
        after = layer(x)
        layer.weight.copy_(old)
    assert torch.allclose(out[0], (after - before)[0], atol=1e-5)
    assert torch.equal(out[1], torch.zeros_like(out[1]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(6, 5), (5, 6, 1, 1)), (nn.Conv2d(6, 5, 3), (5, 6)), (nn.LayerNorm(6), (6,)), (nn.Conv2d(6, 5, 3), ())],
)
def test_full_weight_of_other_shape_is_rejected(layer, shape):
    with pytest.raises(ConceptError, match=r"concept 'mine': its weight 'm\.layer' is .*; it was made for another"):
        subtract_base_weights({"m.layer": torch.ones(shape)}, {"m": nn.ModuleDict({"layer": layer})}, "mine")


def difference(shape: tuple[int, ...], seed: int, bias: int = 0) -> FullChange:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"diff": torch.randn(shape, generator=generator)}
    tensors |= {"diff_b": torch.randn(bias, generator=generator)} if bias else {}
    return FullChange(((WeightRule("difference", tensors), 1.0),))


def test_rows_of_one_layer_may_use_products_and_whole_changes():
    layer, x = nn.Linear(6, 5), torch.randn(5, 4, 6)
    adapters = {"low": {"m.layer": low_rank(2, 0)}, "a": {"m.layer": difference((5, 6), 1, bias=5)},
                "b": {"m.layer": difference((5, 6), 2)}}  # fmt: skip
    out = change(layer, adapters, ["a", "low", None, "b", "a"], x)
    first, second = (adapters[name]["m.layer"].parts[0][0].tensors for name in "ab")
    expected = {
        0: x[0] @ first["diff"].T + first["diff_b"],
        1: x[1] @ low_rank(2, 0).down.T @ low_rank(2, 0).up.T,
        2: torch.zeros(4, 5),
        3: x[3] @ second["diff"].T,
        4: x[4] @ first["diff"].T + first["diff_b"],
    }
    for i, value in expected.items():
        assert torch.allclose(out[i], value, atol=1e-5), i


def test_whole_changes_are_scaled_and_added_to_products():
    parts = [{"m.layer": difference((5, 6), 1, bias=5)}, {"m.layer": low_rank(2, 0)}]
    scaled = [scale_adapter(parts[0], 0.5), scale_adapter(parts[1], 0.25)]
    layer, x = nn.Linear(6, 5), torch.randn(1, 4, 6)
    together = change(layer, {"a": concatenate_adapters(scaled)}, ["a"], x)
    alone = 0.5 * change(layer, {"a": parts[0]}, ["a"], x) + 0.25 * change(layer, {"a": parts[1]}, ["a"], x)
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5, bias=False), nn.Conv2d(6, 5, 3)])
def test_bias_alone_is_changed(layer):
    bias = FullChange(((WeightRule("difference", {"diff_b": torch.arange(5.0)}), 1.0),))
    x = torch.randn(2, 4, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 4, 4)
    out = change(layer, {"a": {"m.layer": bias}}, [None, "a"], x)
    by_channel = out.movedim(1, -1) if out.ndim == 4 else out
    assert torch.allclose(by_channel[1], torch.arange(5.0).expand_as(by_channel[1]), atol=1e-5)
    assert torch.equal(out[0], torch.zeros_like(out[0]))


def test_whole_changes_take_as_much_memory_as_their_layers(monkeypatch):
    """In the layers' dtype, once for each adapter; and they are released when the block ends."""
    module = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Conv2d(4, 3, 3), "c": nn.Linear(6, 5)}).to(torch.bfloat16)
    names = [(name, part) for name in ("x", "y") for part in "abc"]
    adapters = {n: {f"m.{p}": difference(tuple(module[p].weight.shape), 0) for m, p in names if m == n} for n in "xy"}
    references = []
    with one_adapter_per_row(module, "m.", adapters):
        held = [hook for layer in module.values() for hook in layer._forward_hooks.values()]
        assert all(isinstance(hook, FullLayer) and hook.bias is None for hook in held)
        sizes = [hook.weight.numel() * hook.weight.element_size() for hook in held]
        assert sum(sizes) == 2 * sum(layer.weight.numel() * 2 for layer in module.values())
        references = [weakref.ref(hook.weight) for hook in held]
        del held
    assert [reference() for reference in references] == [None] * 3


def test_whole_changes_of_layers_that_are_moved_for_their_calls():
    """As in the memory tier sequential, where weights are on the meta device between calls."""
    layer, x = nn.Linear(6, 5), torch.randn(2, 4, 6)
    entry = concatenate_adapters([{"m.layer": difference((5, 6), 1)}, {"m.layer": low_rank(2, 0)}])
    expected = change(layer, {"a": entry}, ["a", None], x)
    module = nn.ModuleDict({"layer": layer})
    cpu_offload(module, execution_device=torch.device("cpu"))
    assert layer.weight.is_meta
    with torch.no_grad(), one_adapter_per_row(module, "m.", {"a": entry}) as state, state.on(["a", None]):
        moved = layer(x)
    assert layer.weight.is_meta and torch.allclose(moved[0] - layer(x)[0], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (difference((5, 7), 0), "has tensors diff \\(5, 7\\), which do not fit the model's weight \\(5, 6\\)"),
        (difference((5, 6), 0, bias=4), "has a bias of shape \\(4,\\), the model's layer has 5 outputs"),
    ],
)
def test_whole_change_that_does_not_fit_is_rejected(entry, message):
    with (
        pytest.raises(ConceptError, match=f"concept 'a': layer 'layer' {message}; it was made for another base model"),
        one_adapter_per_row(nn.ModuleDict({"layer": nn.Linear(6, 5)}), "m.", {"a": {"m.layer": entry}}),
    ):
        pass


@pytest.mark.parametrize(("scale", "size"), [(2.0**-20, 64.0), (1.0, 1.0), (2.0**12, 2.0**-6)])
def test_factors_keep_their_precision_in_half(scale, size):
    """alpha / rank in up makes values of 1e-6, of which float16 alone keeps one or two digits."""
    entry = LowRank(torch.randn(4, 32), torch.randn(24, 4) * scale)
    layer, x = nn.Linear(32, 24, bias=False).half(), (size * torch.randn(1, 8, 32)).half()
    layer.weight.data.zero_()
    out = change(layer, {"a": {"m.layer": entry}}, ["a"], x)
    expected = x.float() @ entry.down.T @ entry.up.T
    assert (out.float() - expected).norm() < 2e-3 * expected.norm()


def test_a_rank_of_zeros_stays_zero_in_half():
    entry = LowRank(torch.zeros(2, 6), torch.zeros(5, 2))
    out = change(nn.Linear(6, 5).half(), {"a": {"m.layer": entry}}, ["a"], torch.randn(1, 4, 6).half())
    assert torch.equal(out, torch.zeros_like(out))
