"""A few steps on the built-in model: who is taught is learned, and not somebody else."""

from dataclasses import replace

import pytest
import torch

from costars import open_studio
from costars.concepts.formats import load_concept
from costars.microworld.train.concepts import teaching
from costars.model.adapters import one_adapter_per_row, text_adapter
from costars.train import results
from costars.train.batches import encode
from costars.train.loop import TEACHING, teach
from costars.train.loss import cell_weights, levels_of, noise_errors
from costars.train.recipes import RECIPES

PICTURES, STEPS, SEEDS = 4, 24, 3


@pytest.fixture(scope="module")
def model():
    return open_studio("cpu", "float32").model("builtin")


def lesson(name, called=""):
    """Some of an inhabitant's pictures, in the captions called otherwise where told."""
    own = teaching(name)
    said = [replace(e, caption=e.caption.replace(name, called or name)) for e in own.examples[:PICTURES]]
    return replace(own, examples=said)


@torch.no_grad()
def error(model, lesson, adapter):
    """The error of the predicted noise where these pictures show who is meant, at the same noise each time."""
    encoded, total = encode(model, lesson.examples, longest=1.0, own_size=False), 0.0
    with one_adapter_per_row(model.unet, "unet.", {"own": adapter}) as rows, rows.on(["own"] * PICTURES):
        with text_adapter(model.encoders, adapter):
            texts = [model.encode_text(example.caption) for example in lesson.examples]
        tokens = torch.cat([text.tokens for text in texts])
        pooled = None if texts[0].pooled is None else torch.cat([text.pooled for text in texts])
        for seed in range(SEEDS):
            (bucket,), generator = encoded.buckets, torch.Generator().manual_seed(seed)
            shown = cell_weights(bucket.masks, bucket.latents.shape[-2:], 0.0)
            levels = levels_of(model.scheduler)
            found = noise_errors(
                model.unet, levels, bucket.latents, (tokens, pooled), bucket.size_ids, generator, weights=shown
            )
            total += float(found.mean())
    return total / SEEDS


def test_a_few_steps_teach_who_is_shown_and_nobody_else(model, tmp_path):
    recipe = replace(RECIPES["lora"]["builtin"], steps=STEPS, batch=2, unet_rate=6e-3, text_rate=2e-3, warmup_steps=2)
    ana = lesson("ana")
    *events, taught = teach(model, [ana], recipe)
    assert sum(event.stage == TEACHING for event in events) == STEPS
    results.write(taught, [tmp_path / "ana.safetensors"])
    adapter = load_concept(tmp_path / "ana.safetensors", "ana", "ana").adapter
    other = lesson("cleo", called="ana")  # cleo's pictures, said to be ana
    gain, gain_on_other = (1 - error(model, shown, adapter) / error(model, shown, {}) for shown in (ana, other))
    assert gain > 0.05 and gain > 2 * gain_on_other, (gain, gain_on_other)
