"""The rows of a call: a text beside a longer one, and rows that a ControlNet does not touch, are as they were alone."""

from dataclasses import replace

import pytest
import torch

from costars.model.families import attention_layers, cross_layer_index
from costars.model.offload import MicroBatcher
from costars.sample.attention_processor import stock_attention
from costars.sample.batch import make_batch
from costars.sample.row_predictor import RowPredictor
from costars.sample.word_maps import RecordWordMaps
from costars.types import ControlNet, DenoisingPath

SIZE = (64, 64)


def predictor(model, paths, controls=(), rule=None):
    return RowPredictor(
        model=model,
        batch=make_batch(model, paths, SIZE),
        layers=attention_layers(model.unet),
        rule=rule,
        adapters=None,
        controls=controls,
        micro_batcher=MicroBatcher(model.max_rows, model.device),
    )


def noise(model, paths, controls=(), progress=0.0, rule=None):
    rows = predictor(model, paths, controls, rule)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=model.dtype)
    with torch.no_grad():
        return rows.predict(rows.batch.latents(latent, 0), torch.tensor(500), 0, progress)


def test_a_text_beside_a_longer_one_is_read_as_if_it_stood_alone(tiny_double):
    """For the model's own processors, and for a rule."""
    prompts = ("a man in the forest", " ".join(["a"] * 100), " BREAK ".join(["man"] * 5))
    paths = [DenoisingPath(prompt, tiny_double.encode_text(prompt)) for prompt in prompts]
    for rule in (None, stock_attention):
        together = noise(tiny_double, paths, rule=rule)
        for row, path in zip(together, paths, strict=True):
            assert torch.allclose(row, noise(tiny_double, [path])[0], atol=1e-9)


def test_texts_are_padded_to_the_longest(tiny):
    """Not to their least common multiple: 5, 7 and 8 chunks would be 280, with 1 to 8 it would be 840."""
    paths = [DenoisingPath(str(n), tiny.encode_text(" BREAK ".join(["a"] * n))) for n in (5, 7, 8)]
    conditioning = make_batch(tiny, paths, SIZE).conditioning
    assert conditioning.tokens.shape == (3, 8 * 77, 64) and conditioning.lengths == (5 * 77, 7 * 77, 8 * 77)
    assert conditioning.mask.sum(dim=1).tolist() == [5 * 77, 7 * 77, 8 * 77]
    assert not conditioning.tokens[0, 5 * 77 :].any() and conditioning.rows(slice(1, 3)).lengths == (7 * 77, 8 * 77)


def test_texts_of_one_length_have_no_mask(tiny):
    text = tiny.encode_text("a man")
    conditioning = make_batch(tiny, [DenoisingPath("a", text, text)], SIZE).conditioning
    assert conditioning.mask is None and conditioning.lengths == ()


def test_word_maps_of_a_padded_text_are_those_of_the_text_alone(tiny_double):
    text, longer = tiny_double.encode_text("a man in the forest"), tiny_double.encode_text(" ".join(["a"] * 100))
    maps = []
    for path in (DenoisingPath("alone", text), DenoisingPath("padded", text, longer)):
        record = RecordWordMaps(row=0, columns={"man": [2]}, size=(8, 8), text_tokens=77)
        noise(tiny_double, [path], rule=record)
        maps.append(torch.from_numpy(record.means()["man"]))
    assert torch.allclose(*maps, atol=1e-6) and float(maps[0].mean()) > 0.005


def brighter(sample, t, tokens, images, scale, added_cond_kwargs, return_dict):
    """Stands for a ControlNet: residuals of the scale's size wherever a UNet of three levels takes them."""
    sizes = [(16, 8)] * 3 + [(16, 4)] + [(32, 4)] * 2 + [(32, 2)] + [(48, 2)] * 2
    assert images.shape == (len(sample), 3, 64, 64) and len(tokens) == len(sample) == len(added_cond_kwargs["time_ids"])
    down = [torch.full((len(sample), c, side, side), scale, dtype=sample.dtype) for c, side in sizes]
    return down, torch.full((len(sample), 48, 2, 2), scale, dtype=sample.dtype)


def control(scale=1.0, start=0.0, end=1.0):
    return ControlNet(brighter, torch.ones(1, 3, 64, 64, dtype=torch.float64), scale, start, end)


@pytest.fixture
def paths(tiny_double):
    texts = [tiny_double.encode_text(p) for p in ("a man", "a woman", "")]
    return [DenoisingPath("global", texts[0], texts[2], controlled=True), DenoisingPath("a", texts[1], texts[2])]


def test_a_control_acts_on_its_own_rows_alone(tiny_double, paths):
    free, held = noise(tiny_double, paths), noise(tiny_double, paths, [control()])
    changed = (free - held).abs().flatten(1).max(dim=1).values > 1e-6
    assert changed.tolist() == [True, True, False, False]
    assert torch.allclose(free[[2, 3]], held[[2, 3]], atol=1e-9)


def mean_of_text(sample, t, tokens, images, scale, added_cond_kwargs, return_dict):
    """Stands for a ControlNet that reads all tokens of each row."""
    down, middle = brighter(sample, t, tokens, images, scale, added_cond_kwargs, return_dict)
    means = tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1)
    return [each * means for each in down], middle * means


def test_a_control_reads_a_padded_text_as_if_it_stood_alone(tiny_double):
    texts = [tiny_double.encode_text(prompt) for prompt in ("a man", " ".join(["a"] * 100), "a woman")]
    path, other = DenoisingPath("global", *texts[:2], controlled=True), DenoisingPath("a", texts[2])
    held = [replace(control(), net=mean_of_text)]
    together = noise(tiny_double, [path, other], held)
    for row, text in zip(together[:2], texts, strict=False):
        alone = noise(tiny_double, [DenoisingPath("global", text, controlled=True)], held)[0]
        assert torch.allclose(row, alone, atol=1e-9)
    assert torch.allclose(together[2], noise(tiny_double, [other])[0], atol=1e-9)


def test_controls_are_added_up(tiny_double, paths):
    together = noise(tiny_double, paths, [control(0.25), control(0.75)])
    assert torch.allclose(together, noise(tiny_double, paths, [control(1.0)]), atol=1e-9)


@pytest.mark.parametrize(("progress", "acts"), [(0.1, False), (0.2, True), (0.7, True), (0.8, False)])
def test_a_control_acts_in_its_share_of_the_steps(tiny_double, paths, progress, acts):
    held = noise(tiny_double, paths, [control(start=0.2, end=0.8)], progress)
    assert torch.equal(held, noise(tiny_double, paths)) != acts


def test_a_control_reaches_the_same_rows_however_the_batch_is_split(tiny_double, paths):
    split = noise(tiny_double.with_max_rows(1), paths, [control()])
    assert torch.allclose(split, noise(tiny_double, paths, [control()]), atol=1e-9)


def test_each_layer_reads_its_own_tokens_down_mid_up(tiny_double, monkeypatch):
    layers = attention_layers(tiny_double.unet)
    numbers = cross_layer_index(layers)
    assert sorted(numbers.values()) == list(range(17))
    places = [name.partition(".")[0] for name in sorted(numbers, key=numbers.__getitem__)]
    assert [p for i, p in enumerate(places) if not i or places[i - 1] != p] == ["down_blocks", "mid_block", "up_blocks"]

    read = {}
    own = torch.randn(17, 77, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, layer in layers:
        if name in numbers:
            layer.to_k.register_forward_hook(lambda m, inputs, out, name=name: read.update({name: inputs[0]}))
    text = tiny_double.encode_text("a man")
    path = DenoisingPath("a", type(text)(text.prompt, own, text.pooled))
    rows = predictor(tiny_double, [path, DenoisingPath("b", text)], rule=stock_attention)
    with torch.no_grad():
        rows.predict(torch.zeros(2, 4, 8, 8, dtype=torch.float64), torch.tensor(500), 0, 0.0)
    for _, layer in layers:
        layer.to_k._forward_hooks.clear()
    for name, number in numbers.items():
        assert torch.equal(read[name][0], own[number]) and torch.equal(read[name][1], text.tokens[0])
