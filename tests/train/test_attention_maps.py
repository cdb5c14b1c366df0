"""Attention that is looked at: the same numbers as the model's own, and the probabilities that they come of."""

import pytest
import torch

from costars.model.families import attention_layers, cross_layer_index
from costars.train.attention_maps import record_attention

COLUMNS = [[(1, 2), (4,)], [(3,), (0, 5)]]


@pytest.fixture
def call(tiny_double):
    """One call of the UNet in float64 on a latent of 8 x 16 cells."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sample, text = random(2, 4, 8, 16), random(2, 77, 64)
    sizes = tiny_double.size_ids((128, 64)).expand(2, 6)
    added = {"text_embeds": random(2, tiny_double.encoders[1].module.config.projection_dim), "time_ids": sizes}

    def of(tokens=text, rows=slice(None)):
        own = {key: value[rows] for key, value in added.items()}
        return tiny_double.unet(sample[rows], torch.tensor(300), tokens[rows], added_cond_kwargs=own).sample

    of.text = text
    return of


@torch.no_grad()
def probabilities(unet, run):
    """{layer: (b, heads, queries, t)} of every cross-attention, computed beside the layers."""
    found, handles = {}, []

    def of(name, layer):
        def hook(module, args, kwargs, output):
            hidden = args[0] if args else kwargs["hidden_states"]
            context = kwargs["encoder_hidden_states"]
            q, k = layer.to_q(hidden), layer.to_k(context)
            q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (q, k))
            found[name] = (q @ k.transpose(2, 3) * layer.scale).softmax(dim=-1)

        return hook

    for name, layer in attention_layers(unet):
        if name.endswith("attn2"):
            handles.append(layer.register_forward_hook(of(name, layer), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def test_looking_changes_nothing_and_leaves_nothing(tiny_double, call, trace):
    before, plain = trace(tiny_double.unet), call()
    with record_attention(tiny_double.unet, 1) as gaze:
        unwatched = call()
        assert gaze.maps == {}
        gaze.at(COLUMNS, 77)
        watched = call()
    assert torch.allclose(unwatched, plain, atol=1e-12) and torch.allclose(watched, plain, atol=1e-12)
    assert trace(tiny_double.unet) == before


@torch.no_grad()
def test_maps_are_the_probabilities_of_a_words_tokens(tiny_double, call):
    expected = probabilities(tiny_double.unet, call)
    with record_attention(tiny_double.unet, 1) as gaze:
        gaze.at(COLUMNS, 77)
        call()
    outer = {name for name in expected if not name.startswith("mid_block")}
    assert gaze.maps.keys() == outer and len(outer) < len(expected)
    for name, maps in gaze.maps.items():
        heads = expected[name].mean(dim=1)
        for row, words in enumerate(COLUMNS):
            for number, columns in enumerate(words):
                hand = heads[row][:, list(columns)].mean(dim=-1)
                assert torch.allclose(maps[row, number].double(), hand, atol=1e-6)


@torch.no_grad()
def test_the_middle_is_looked_at_where_it_is_wanted(tiny_double, call):
    with record_attention(tiny_double.unet, 1, middle=True) as gaze:
        gaze.at(COLUMNS, 77)
        call()
    assert gaze.maps.keys() == probabilities(tiny_double.unet, call).keys()


@torch.no_grad()
def test_maps_of_one_resolution_are_their_mean_on_the_grid(tiny_double, call):
    with record_attention(tiny_double.unet, 1) as gaze:
        gaze.at(COLUMNS, 77)
        call()
    sizes = gaze.by_size((2, 4, 8, 16))
    assert {queries: tuple(maps.shape) for queries, maps in sizes.items()} == {8: (2, 2, 2, 4), 32: (2, 2, 4, 8)}
    for queries, mean in sizes.items():
        own = [maps for maps in gaze.maps.values() if maps.shape[-1] == queries]
        assert len(own) > 1 and torch.allclose(mean.flatten(2), torch.stack(own).mean(dim=0))
    gaze.at(())
    assert gaze.maps == {} and gaze.by_size((2, 4, 8, 16)) == {}


def test_gradients_of_the_maps_reach_the_text_at_the_looked_at_columns_and_their_rivals(tiny_double, call):
    text = call.text.clone().requires_grad_()
    with record_attention(tiny_double.unet, 1) as gaze:
        gaze.at(COLUMNS, 77)
        call(text)
        (total,) = torch.autograd.grad(sum(m[:, 0].sum() for m in gaze.maps.values()), text)
    assert (total[0, [1, 2]].abs().sum(dim=-1) > 0).all() and (total[1, 3].abs().sum() > 0).all()
    assert total.isfinite().all()


@torch.no_grad()
def test_each_layer_reads_and_is_looked_at_in_its_own_part_of_the_text(tiny_double, call):
    """With the same text for every layer it is the plain call; another text in one part reaches that layer alone."""
    numbers = cross_layer_index(attention_layers(tiny_double.unet))
    layers, plain = len(numbers), call()
    with record_attention(tiny_double.unet, layers) as gaze:
        gaze.at(COLUMNS, 77)
        assert torch.allclose(call(call.text.repeat(1, layers, 1)), plain, atol=1e-12)
        before = {name: maps.clone() for name, maps in gaze.maps.items()}
        last = max((n for n in numbers if n in before), key=numbers.__getitem__)
        text = call.text.repeat(1, layers, 1)
        text[:, numbers[last] * 77 : (numbers[last] + 1) * 77] *= 2
        gaze.at(COLUMNS, 77)
        call(text)
    changed = {name for name, maps in gaze.maps.items() if not torch.allclose(maps, before[name], atol=1e-9)}
    assert last in changed and len(changed) < len(before)
    assert all(numbers[name] >= numbers[last] for name in changed)


@torch.no_grad()
def test_words_of_rows_may_be_fewer_than_of_others(tiny_double, call):
    with record_attention(tiny_double.unet, 1) as gaze:
        gaze.at([[(1,), (2,)], [(1,)]], 77)
        call()
        assert all(maps[1, 1].abs().max() == 0 < maps[1, 0].min() for maps in gaze.maps.values())


def test_what_is_computed_twice_is_looked_at_as_it_was(tiny_double, call):
    """With gradient checkpointing a layer works again in the backward pass, when others are looked at."""

    def gradient():
        text = call.text.clone().requires_grad_()
        with record_attention(tiny_double.unet, 1) as gaze:
            gaze.at(COLUMNS, 77)
            out = call(text)
            maps = gaze.by_size((2, 4, 8, 16))
            gaze.at(())
            loss = out.square().mean() + sum(m.square().sum() for m in maps.values()) + call(text).mean()
            loss.backward()
            assert gaze.maps == {} and gaze.picked is None
        return text.grad

    plain = gradient()
    tiny_double.unet.enable_gradient_checkpointing()
    tiny_double.unet.train()
    try:
        spared = gradient()
        assert tiny_double.unet.is_gradient_checkpointing
    finally:
        tiny_double.unet.disable_gradient_checkpointing()
        tiny_double.unet.eval()
    assert torch.allclose(plain, spared, atol=1e-12)
