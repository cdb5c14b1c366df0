"""The LoRA recipe: a file that we and diffusers read alike, and a model left as it was."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from costars.concepts.formats import load_concept, read_card
from costars.errors import SceneError
from costars.model.adapters import one_adapter_per_row, text_adapter
from costars.train.lora import LoraRecipe, Teaching, cell_weights, train_lora

RECIPE = LoraRecipe(rank=2, steps=4, batch=2, unet_rate=5e-3, text_rate=5e-3, warmup_steps=1)


def teaching(**changes) -> Teaching:
    facts = {
        "name": "mia",
        "class_name": "woman",
        "trigger": "mia",
        "images": [Image.new("RGB", (64, 64), colour) for colour in ("red", "green")],
        "captions": ["photo of a mia woman", "a mia woman in the forest"],
    }
    return Teaching(**facts | changes)


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """A concept that was taught for a few steps, and the losses on the way."""
    path = tmp_path_factory.mktemp("taught") / "new" / "mia.safetensors"
    return path, list(train_lora(tiny, teaching(), RECIPE, path))


def test_every_step_yields_its_loss(taught):
    _, losses = taught
    assert len(losses) == RECIPE.steps
    assert all(0 < loss < 10 for loss in losses)


def test_the_file_says_what_it_is_and_what_it_was_made_with(taught, tiny):
    path, _ = taught
    card = read_card(path)
    assert (card["name"], card["class_name"], card["trigger"], card["family"]) == ("mia", "woman", "mia", "sdxl")
    assert card["base_sha256"] == tiny.facts.sha256 and card["pictures"] == 2 and card["recipe"]["rank"] == 2
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["unet.lora_alpha"] == 2
        assert all(file.get_tensor(key).dtype is torch.float16 for key in file.keys())  # noqa: SIM118
    assert [p.name for p in path.parent.iterdir()] == ["mia.safetensors"]


def test_all_attention_layers_of_unet_and_text_encoders_were_changed(taught, tiny):
    concept = load_concept(taught[0], "mia", "mia")
    counts = {p: sum(k.startswith(p) for k in concept.adapter) for p in ("unet.", "text_encoder.", "text_encoder_2.")}
    assert counts == {"unet.": 4 * len(tiny.unet.attn_processors), "text_encoder.": 4 * 3, "text_encoder_2.": 4 * 4}
    assert all(len(entry.down) == 2 for entry in concept.adapter.values())
    read = [e.up.abs().max() > 0 for k, e in concept.adapter.items() if not k.startswith("text_encoder_2")]
    assert sum(read) > 0.9 * len(read)


def test_diffusers_reads_the_file_as_we_do(taught, tiny, pipeline):
    concept = load_concept(taught[0], "mia", "mia")
    pipeline.load_lora_weights(taught[0])
    tokens, _, pooled, _ = pipeline.encode_prompt("a mia woman", do_classifier_free_guidance=False)
    with text_adapter(tiny.encoders, concept.adapter):
        text = tiny.encode_text("a mia woman")
    assert torch.allclose(text.tokens, tokens, atol=1e-5) and torch.allclose(text.pooled, pooled, atol=1e-5)
    assert not torch.allclose(text.tokens, tiny.encode_text("a mia woman").tokens, atol=1e-3)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = torch.tensor(300), text.tokens
    added = {"text_embeds": text.pooled, "time_ids": tiny.size_ids((64, 64))}
    with torch.no_grad(), one_adapter_per_row(tiny.unet, "unet.", {"mia": concept.adapter}) as adapters:
        with adapters.on(["mia"]):
            ours = tiny.unet(sample, *call, added_cond_kwargs=added).sample
        theirs = pipeline.unet(sample, *call, added_cond_kwargs=added).sample
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_same_pictures_and_seed_give_the_same_adapter(taught, tiny, tmp_path):
    again, other = tmp_path / "mia.safetensors", tmp_path / "other.safetensors"
    assert list(train_lora(tiny, teaching(), RECIPE, again)) == taught[1]
    first, second = load_file(taught[0]), load_file(again)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    list(train_lora(tiny, teaching(), LoraRecipe(**vars(RECIPE) | {"seed": 1}), other))
    assert any(not torch.equal(v, first[k]) for k, v in load_file(other).items())


@pytest.mark.parametrize("steps", [1, None])
def test_the_model_is_as_it_was_also_when_the_teaching_is_stopped(tiny, tmp_path, trace, steps):
    parts = (tiny.unet, *(e.module for e in tiny.encoders), tiny.vae)
    before = [trace(p) for p in parts]
    path = tmp_path / "mia.safetensors"
    losses = train_lora(tiny, teaching(), RECIPE, path)
    next(losses)
    assert trace(tiny.unet) != before[0]
    for _ in losses if steps is None else ():
        pass
    losses.close()
    assert [trace(p) for p in parts] == before
    assert path.exists() == (steps is None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"captions": ["a mia woman"]}, "mia: 2 pictures and 1 captions; want one caption for each"),
        ({"images": [], "captions": []}, "mia: 0 pictures and 0 captions"),
        ({"captions": ["a mia woman", "a miami woman"]}, "the caption 'a miami woman' lacks the trigger 'mia'"),
    ],
)
def test_pictures_without_their_words_are_refused_before_anything_is_done(tiny, tmp_path, changes, said):
    with pytest.raises(SceneError) as caught:
        next(train_lora(tiny, teaching(**changes), RECIPE, tmp_path / "mia.safetensors"))
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cells_count_by_how_much_of_them_the_mask_covers():
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:32, :36] = 1
    (weights,) = cell_weights([mask], (8, 8), 0.1)
    assert torch.isclose(weights.mean(), torch.tensor(1.0))
    assert torch.isclose(weights[0, 7, 7] / weights[0, 0, 0], torch.tensor(0.1))
    assert torch.isclose(weights[0, 0, 4] / weights[0, 0, 0], torch.tensor(0.55))
    assert torch.equal(cell_weights([mask], (8, 8), 1.0), torch.ones(1, 1, 8, 8))


def test_what_lies_outside_the_masks_is_not_learned_where_it_does_not_count(tiny, tmp_path):
    mask = np.zeros((256, 256), dtype=np.float32)
    mask[:, :128] = 1
    pictures = teaching()
    losses = {}
    for name, outside in (("own", 0.0), ("all", 1.0)):
        recipe = LoraRecipe(**vars(RECIPE) | {"outside_weight": outside})
        masked = replace(pictures, masks=[mask] * len(pictures.images))
        losses[name] = list(train_lora(tiny, masked, recipe, tmp_path / f"{name}.safetensors"))
    plain = list(train_lora(tiny, pictures, RECIPE, tmp_path / "plain.safetensors"))
    assert losses["all"] == pytest.approx(plain) and losses["own"] != pytest.approx(plain)
