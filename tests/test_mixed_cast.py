"""A LoRA, learned words, words of each layer and whole weights side by side in one cast."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from costars.concepts.saving import write_concept
from costars.model.families import attention_layers, count_cross_layers
from costars.retry import last
from costars.studio import open_studio
from costars.types import Plan, Step

KINDS = ("lora", "words", "words of each layer", "weights")


@pytest.fixture
def cast(tiny, concepts, library, tmp_path):
    """One member of each kind, each with a quarter of the picture for its own."""
    layers = count_cross_layers(tiny.unet)
    widths = {e.name: e.module.config.hidden_size for e in tiny.encoders}
    plain = replace(concepts["a"], adapter={}, family="sdxl")

    def drawn(*shape):
        return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    key = next(f"unet.{name}.to_k" for name, layer in attention_layers(tiny.unet) if name.endswith("attn2"))
    weight = tiny.unet.get_submodule(key.removeprefix("unet.")).weight
    made = {
        "words": {"tokens": {"<one>": {n: drawn(2, w) for n, w in widths.items()}}},
        "words of each layer": {"tokens": {"<two>": {n: drawn(layers, w) for n, w in widths.items()}}},
        "weights": {"weights": {key: weight + drawn(*weight.shape)}},
    }
    cast = {}
    for i, kind in enumerate(KINDS):
        if kind in made:
            word = next(iter(made[kind].get("tokens", {"w": None})))
            concept = replace(plain, name=f"c{i}", trigger=word, per_layer=kind == "words of each layer", **made[kind])
            card = {"class_name": "man", "trigger": word, "family": "sdxl", "per_layer": concept.per_layer}
            write_concept(concept, card, library / f"c{i}.safetensors")
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[:, 16 * i : 16 * (i + 1)] = 255
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
        concept = f"c{i}" if kind in made else "char_a"
        cast[f"m{i}"] = {"concept": concept, "class_name": "man", "where": str(tmp_path / f"{i}.png")}
    return cast


@pytest.mark.parametrize("changed", range(len(KINDS)), ids=KINDS)
def test_every_kind_acts_in_its_own_place_and_in_no_other(library, make_scene, cast, changed):
    prompt = "photo of {m0} and {m1} and {m2} and {m3} in the forest"
    scene = make_scene(prompt=prompt, cast=cast, steps=4, start=0.75)
    studio = open_studio("cpu", "float32", library=library)
    plan, name = last(studio.plan_steps(scene), Plan), f"m{changed}"
    member = scene.cast[name].model_copy(update={"concept": "char_b"})
    other = scene.model_copy(update={"cast": {**scene.cast, name: member}})
    (ours,), (theirs,) = (
        [step.latent for step in studio.render_steps(replace(plan, scene=each)) if isinstance(step, Step)]
        for each in (scene, other)
    )
    differs = ((ours - theirs).abs() > 1e-3).amax(dim=(0, 1, 2))  # by column; other sizes of a batch round otherwise
    assert differs.tolist() == [x // 2 == changed for x in range(8)]
