"""Recorded attention maps: the model's prediction is unchanged, the maps are its attention probabilities."""

import pytest
import torch

from costars.model.families import attention_layers, cross_layer_index, is_cross, is_middle
from costars.train.attention_maps import attention_recorder

COLUMNS = [[(1, 2), (4,)], [(3,), (0, 5)]]
TOKENS = 77
SHAPE = (2, 4, 8, 16)


@pytest.fixture
def call(tiny_double):
    """One call of the UNet in float64 on latents of 8 x 16 cells; call.text is its text."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    latents, text = random(*SHAPE), random(2, TOKENS, 64)
    size_ids = tiny_double.size_ids((128, 64)).expand(2, 6)
    added = {"text_embeds": random(2, tiny_double.encoders[1].module.config.projection_dim), "time_ids": size_ids}

    def predict(tokens=text):
        return tiny_double.unet(latents, torch.tensor(300), tokens, added_cond_kwargs=added).sample

    predict.text = text
    return predict


@torch.no_grad()
def probabilities(unet, call):
    """{layer: (b, heads, queries, t)} of every cross-attention, computed by hooks."""
    found, handles = {}, []

    def make_hook(name):
        def hook(layer, args, kwargs, output):
            hidden = args[0] if args else kwargs["hidden_states"]
            q, k = layer.to_q(hidden), layer.to_k(kwargs["encoder_hidden_states"])
            q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (q, k))
            found[name] = (q @ k.transpose(2, 3) * layer.scale).softmax(dim=-1)

        return hook

    for name, layer in attention_layers(unet):
        if is_cross(name):
            handles.append(layer.register_forward_hook(make_hook(name), with_kwargs=True))
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def test_recording_does_not_change_the_prediction_and_is_removed(tiny_double, call, trace):
    before, plain = trace(tiny_double.unet), call()
    with attention_recorder(tiny_double.unet) as recorder:
        not_recorded = call()
        with recorder.recording(COLUMNS, TOKENS) as maps:
            recorded = call()
    assert maps.layers
    assert torch.allclose(not_recorded, plain, atol=1e-12) and torch.allclose(recorded, plain, atol=1e-12)
    assert trace(tiny_double.unet) == before


@torch.no_grad()
def test_nothing_is_recorded_outside_of_the_block(tiny_double, call):
    with attention_recorder(tiny_double.unet) as recorder:
        with recorder.recording(COLUMNS, TOKENS) as maps:
            pass
        call()
    assert maps.layers == {} and maps.by_size(SHAPE) == {}


@torch.no_grad()
def test_maps_are_mean_probabilities_of_a_words_tokens(tiny_double, call):
    expected = probabilities(tiny_double.unet, call)
    with attention_recorder(tiny_double.unet) as recorder, recorder.recording(COLUMNS, TOKENS) as maps:
        call()
    outer = {name for name in expected if not is_middle(name)}
    assert maps.layers.keys() == outer and len(outer) < len(expected)
    for name, recorded in maps.layers.items():
        mean = expected[name].mean(dim=1)
        for row, words in enumerate(COLUMNS):
            for number, columns in enumerate(words):
                by_hand = mean[row][:, list(columns)].mean(dim=-1)
                assert torch.allclose(recorded[row, number].double(), by_hand, atol=1e-6)


@torch.no_grad()
def test_include_middle_records_the_mid_block(tiny_double, call):
    with (
        attention_recorder(tiny_double.unet, include_middle=True) as recorder,
        recorder.recording(COLUMNS, TOKENS) as maps,
    ):
        call()
    assert maps.layers.keys() == probabilities(tiny_double.unet, call).keys()


@torch.no_grad()
def test_by_size_averages_layers_of_a_resolution(tiny_double, call):
    with attention_recorder(tiny_double.unet) as recorder, recorder.recording(COLUMNS, TOKENS) as maps:
        call()
    sizes = maps.by_size(SHAPE)
    assert {queries: tuple(mean.shape) for queries, mean in sizes.items()} == {8: (2, 2, 2, 4), 32: (2, 2, 4, 8)}
    for queries, mean in sizes.items():
        layers = [recorded for recorded in maps.layers.values() if recorded.shape[-1] == queries]
        assert len(layers) > 1 and torch.allclose(mean.flatten(2), torch.stack(layers).mean(dim=0))


@torch.no_grad()
def test_self_attention_is_summed_over_calls(tiny_double, call):
    with attention_recorder(tiny_double.unet) as recorder:
        with recorder.recording_self_attention(32) as once:
            call()
        with recorder.recording_self_attention(32) as twice:
            call(), call()
        call()
    assert once.total.shape == (32, 32)
    assert torch.allclose(twice.total, 2 * once.total)
    sums = once.total.sum(dim=1)  # each layer and row adds 1
    assert torch.allclose(sums, sums.round(), atol=1e-4) and sums.min() >= 2


def test_gradients_of_maps_reach_the_recorded_tokens(tiny_double, call):
    text = call.text.clone().requires_grad_()
    with attention_recorder(tiny_double.unet) as recorder, recorder.recording(COLUMNS, TOKENS) as maps:
        call(text)
    (gradient,) = torch.autograd.grad(sum(m[:, 0].sum() for m in maps.layers.values()), text)
    assert (gradient[0, [1, 2]].abs().sum(dim=-1) > 0).all() and (gradient[1, 3].abs().sum() > 0).all()
    assert gradient.isfinite().all()


@torch.no_grad()
def test_layers_read_and_record_their_own_part_of_the_text(tiny_double, call):
    """Equal parts give the plain call; a change of the last layer's part changes this layer and later ones."""
    numbers = cross_layer_index(attention_layers(tiny_double.unet))
    layers, plain = len(numbers), call()
    text = call.text.repeat(1, layers, 1)
    with attention_recorder(tiny_double.unet, layers) as recorder:
        with recorder.recording(COLUMNS, TOKENS) as before:
            assert torch.allclose(call(text), plain, atol=1e-12)
        last = max((n for n in numbers if n in before.layers), key=numbers.__getitem__)
        text[:, numbers[last] * TOKENS : (numbers[last] + 1) * TOKENS] *= 2
        with recorder.recording(COLUMNS, TOKENS) as after:
            call(text)
    changed = {n for n, m in after.layers.items() if not torch.allclose(m, before.layers[n], atol=1e-9)}
    assert last in changed and len(changed) < len(before.layers)
    assert all(numbers[name] >= numbers[last] for name in changed)


@torch.no_grad()
def test_missing_words_of_a_row_have_zero_maps(tiny_double, call):
    columns = [[(1,), (2,)], [(1,)]]
    with attention_recorder(tiny_double.unet) as recorder, recorder.recording(columns, TOKENS) as maps:
        call()
    assert all(m[1, 1].abs().max() == 0 < m[1, 0].min() for m in maps.layers.values())


def test_gradient_checkpointing_gives_the_same_gradient(tiny_double, call):
    """Layers are recomputed in the backward pass, when nothing is recorded any more."""

    def gradient():
        text = call.text.clone().requires_grad_()
        with attention_recorder(tiny_double.unet) as recorder:
            with recorder.recording(COLUMNS, TOKENS) as maps:
                out = call(text)
            by_size = maps.by_size(SHAPE)
            loss = out.square().mean() + sum(m.square().sum() for m in by_size.values()) + call(text).mean()
            recorded = dict(maps.layers)
            loss.backward()
            assert maps.layers == recorded
        return text.grad

    plain = gradient()
    tiny_double.unet.enable_gradient_checkpointing()
    tiny_double.unet.train()
    try:
        recomputed = gradient()
        assert tiny_double.unet.is_gradient_checkpointing
    finally:
        tiny_double.unet.disable_gradient_checkpointing()
        tiny_double.unet.eval()
    assert torch.allclose(plain, recomputed, atol=1e-12)
