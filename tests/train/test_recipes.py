"""Each recipe: what was trained is what a scene loads, and what diffusers reads; and short runs stay as they were."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from costars import open_studio
from costars.concepts.export import export_concept
from costars.concepts.load import load_concept, read_card
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.resolve import fitted
from costars.sample.loop import denoise, sampler
from costars.train import results
from costars.train.loop import TEACHING, Progress, Taught, teach
from costars.train.preview import preview
from costars.train.recipes import BUILTIN, RECIPES, recipe_for
from costars.types import DenoisingPath

NAMES = ("lora", "dreambooth", "textual-inversion", "custom-diffusion", "ed-lora", "em")
FAST = {"unet_lr": 5e-3, "text_encoder_lr": 5e-3, "embedding_lr": 5e-2, "steps": 2, "alpha": 4}
DRAWN = "photo of a {} woman in the forest"


def drawn(model, prompt, learned, adapters=None, adapter=None):
    """(1, c, h, w) after three steps with guidance, as a scene draws a member."""
    plan = sampler(model.scheduler, 3, model.device, (64, 64), 3.0, seed=5)
    texts = [model.encode_text(words, learned=learned) for words in (prompt, "")]
    *_, step = denoise(model, plan.noise(model), [DenoisingPath("one", *texts, adapter=adapter)], plan, adapters=adapters)
    return step.latent


def loaded(model, prompt, concept):
    """The same with a concept that was read from a file."""
    (own,) = fitted({"mia": concept}, model).concepts.values()
    rows = one_adapter_per_row(model.unet, "unet.", {"mia": own.adapter})
    with rows as adapters, text_adapter(model.encoders, own.adapter):
        return drawn(model, prompt, own.words, adapters, "mia")


@pytest.fixture(scope="module")
def taught(small, small15, teaching, brief, tmp_path_factory):
    """Teach by a recipe, once; (model, prompt, concept as its file has it, its file, what was drawn at the end)."""

    @cache
    def of(name, family="sdxl", vectors_per_token=1):
        model, recipe = (
            (small if family == "sdxl" else small15),
            brief(name, family, **FAST, vectors_per_token=vectors_per_token),
        )
        lesson, path, end = teaching(recipe), tmp_path_factory.mktemp(name) / "mia.safetensors", None
        prompt = DRAWN.format(lesson.trigger)
        for event in teach(model, [lesson], recipe):
            if isinstance(event, Taught):
                results.write(event, [path])
            elif event.stage == TEACHING and event.step == event.of:
                end = drawn(model, prompt, event.learned)
        return model, prompt, load_concept(path, "mia", "mia"), path, end

    return of


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_trained_is_what_is_loaded(taught, name, family):
    model, prompt, concept, path, end = taught(name, family)
    assert (concept.name, concept.class_name, concept.family) == ("mia", "woman", family)
    assert concept.format == ("diffusers" if name == "lora" else "costars")
    card = read_card(path)
    assert (card["base_sha256"], card["pictures"], card["family"]) == (model.facts.sha256, 2, family)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    plain = drawn(model, prompt.replace(concept.trigger, ""), {})
    change, error = (end - plain).abs().max(), (loaded(model, prompt, concept) - end).abs().max()
    assert error < 0.01 * change, (error, change)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_what_was_taught_together_is_cast_in_a_scene(
    small, small15, teaching, brief, golden, sd15_folder, make_scene, tmp_path, family
):
    recipe, named = brief("em", family, **FAST), {"mia": "woman", "rex": "dog"}
    lessons = [teaching(recipe, name, class_name) for name, class_name in named.items()]
    *_, taught = teach(small if family == "sdxl" else small15, lessons, recipe)
    cast = {}
    for name, left in zip(named, (0, 32), strict=True):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (left, 0, left + 32, 64))
        mask.save(tmp_path / f"{name}.png")
        cast[name] = {"concept": str(tmp_path / f"{name}.safetensors"), "where": str(tmp_path / f"{name}.png")}
    results.write(taught, [tmp_path / f"{name}.safetensors" for name in named])
    folder = golden / "tiny-sdxl" if family == "sdxl" else sd15_folder
    scene = make_scene(prompt="photo of {mia} and {rex}", cast=cast, model=str(folder), steps=3, start=0.34)
    picture = open_studio("cpu", "float32").render(scene)
    assert picture.lost == () and list(picture.plan.regions) == list(named)
    assert picture.image.tobytes() != picture.plan.layout.image.tobytes()


def test_every_part_of_a_concept_was_changed(taught, tensors):
    """Each layer of the UNet and of the text encoders that is read, and every new word."""
    model, _, concept, _, _ = taught("ed-lora")
    counts = {p: sum(k.startswith(p) for k in concept.adapter) for p in ("unet.", "text_encoder.", "text_encoder_2.")}
    assert counts == {"unet.": 4 * len(model.unet.attn_processors), "text_encoder.": 4 * 3, "text_encoder_2.": 4 * 4}
    moved = [e.up.abs().max() > 0 for key, e in concept.adapter.items() if not key.startswith("text_encoder_2")]
    assert sum(moved) > 0.9 * len(moved)
    layers = len(model.unet.attn_processors) // 2
    assert list(concept.tokens) == ["<mia1>", "<mia2>"]
    assert {t.shape for parts in concept.tokens.values() for t in parts.values()} == {(layers, 32)}
    _, _, whole, _, _ = taught("dreambooth")
    layers = dict(model.unet.named_modules())
    assert len(whole.weights) > 100
    same = [k for k, w in whole.weights.items() if torch.equal(w, layers[k.removeprefix("unet.")].weight)]
    assert same == []


def test_a_word_of_several_vectors_is_as_it_was_trained(taught):
    model, prompt, concept, _, end = taught("textual-inversion", vectors_per_token=3)
    assert concept.tokens["<mia>"]["text_encoder"].shape == (3, 32)
    assert torch.allclose(loaded(model, prompt, concept), end, atol=1e-4)


def noise(unet, model, text, adapter=None):
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = None if text.pooled is None else {"text_embeds": text.pooled, "time_ids": model.size_ids((64, 64))}
    with torch.no_grad(), one_adapter_per_row(unet, "unet.", {"mia": adapter or {}}) as rows, rows.on(["mia"]):
        return unet(sample, torch.tensor(300), text.tokens, added_cond_kwargs=added).sample


@pytest.fixture
def pipelines(pipeline, sd15_folder):
    """diffusers' pipeline of a family, and how it reads a prompt: (tokens, pooled or None)."""
    from diffusers import StableDiffusionPipeline

    def of(family):
        if family == "sdxl":
            return pipeline, lambda prompt: pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0:3:2]
        made = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
        return made, lambda prompt: (made.encode_prompt(prompt, "cpu", 1, False)[0], None)

    return of


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_diffusers_reads_a_lora_as_we_do(taught, pipelines, family):
    model, prompt, concept, path, _ = taught("lora", family)
    theirs, encoded = pipelines(family)
    theirs.load_lora_weights(path)
    tokens, pooled = encoded(prompt)
    with text_adapter(model.encoders, concept.adapter):
        text = model.encode_text(prompt)
    assert torch.allclose(text.tokens, tokens, atol=1e-5)
    assert text.pooled is pooled or torch.allclose(text.pooled, pooled, atol=1e-5)
    assert not torch.allclose(text.tokens, model.encode_text(prompt).tokens, atol=1e-3)
    ours = noise(model.unet, model, text, concept.adapter)
    assert torch.allclose(ours, noise(theirs.unet, model, text), atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("name", ["textual-inversion", "custom-diffusion"])
def test_diffusers_reads_what_was_exported_as_we_do(taught, pipelines, tmp_path, name, family):
    model, prompt, concept, _, _ = taught(name, family)
    theirs, encoded = pipelines(family)
    folder = tmp_path / "exported"
    paths = {path.stem: path for path in export_concept(concept, {}, "diffusers", folder)}
    parts = [(theirs.tokenizer, theirs.text_encoder)]
    if family == "sdxl":
        parts.append((theirs.tokenizer_2, theirs.text_encoder_2))
        # Of the old id 2 transformers says itself that it cannot work with added words.
        theirs.text_encoder_2.text_model.eos_token_id = theirs.tokenizer_2.eos_token_id
    word = "learned_embeds" if name == "textual-inversion" else "<mia>"
    for ending, (tokenizer, encoder) in zip(("", "_2"), parts, strict=False):
        theirs.load_textual_inversion(
            folder, weight_name=paths[word + ending].name, tokenizer=tokenizer, text_encoder=encoder
        )
    text = model.encode_text(prompt, learned=concept.words)
    tokens, pooled = encoded(prompt)
    assert torch.allclose(text.tokens, tokens, atol=1e-5)
    assert text.pooled is pooled or torch.allclose(text.pooled, pooled, atol=1e-5)
    if name == "custom-diffusion":
        weights = paths["pytorch_custom_diffusion_weights"].name
        theirs.unet.load_attn_procs(folder, weight_name=weights, _pipeline=theirs)
        (own,) = fitted({"mia": concept}, model).concepts.values()
        ours = noise(model.unet, model, text, own.adapter)
        assert torch.allclose(ours, noise(theirs.unet, model, text), atol=1e-4)
        assert not torch.allclose(ours, noise(model.unet, model, text), atol=1e-3)


def test_every_recipe_has_numbers_for_every_family():
    for name, families in RECIPES.items():
        assert set(families) == {"sd15", "sdxl", BUILTIN}
        assert recipe_for(name, "sd2", "mine") == families["sd15"]
        assert recipe_for(name, "sdxl", "mine") == families["sdxl"]
        assert recipe_for(name, "sdxl", "builtin") == recipe_for(name, "sd15", "builtin") == families[BUILTIN]
        for recipe in families.values():
            assert not recipe.flip_augmentation and bool(recipe.prior_loss_weight) == bool(recipe.num_class_images)
            rates = {"unet": recipe.unet_lr, "text_encoder": recipe.text_encoder_lr}
            assert all(rates[part] > 0 for part in rates if getattr(recipe, part) != "none")
            assert (recipe.embedding_lr > 0) == (recipe.num_new_tokens > 0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_in_half_precision_is_taught_and_drawn(golden, teaching, brief, name):
    model = load_model(Source("tiny", golden / "tiny-sdxl"), torch.device("cpu"), torch.bfloat16, 0, "attention")
    model = replace(model, facts=replace(model.facts, size_px=(64, 64)))
    recipe = brief(name, steps=2)
    lesson = teaching(recipe)
    steps = (e for e in teach(model, [lesson], recipe) if isinstance(e, Progress) and e.stage == TEACHING)
    assert len([preview(model, [lesson], step.learned) for step in steps]) == 2


# The first losses of each recipe on the tiny SDXL checkpoint, seed 0: a change of one of these numbers is a change
# of what a recipe trains, of its noise or of its optimizer. In float32, which is alike on every machine.
RECORDED = {
    "lora": (0.065032, 0.140628, 0.094353),
    "dreambooth": (0.576317, 0.215585, 0.94976),
    "textual-inversion": (0.061075, 0.153085, 0.085432),
    "custom-diffusion": (0.57236, 0.228182, 0.939829),
    "ed-lora": (0.104540, 0.235160, 0.126237),
    "em": (
        0.075430,
        0.186087,
        0.092075,
    ),  # in masks that are given: those that are learned have edges, which rounding moves
}


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_is_as_it_was(small, teaching, brief, name):
    recipe = brief(name, precision="fp32")
    recipe = replace(recipe, em=recipe.em and replace(recipe.em, masks="given"))
    *events, _ = teach(small, [teaching(recipe)], recipe)
    losses = [event.loss for event in events if event.stage == TEACHING]
    assert losses == pytest.approx(RECORDED[name], rel=1e-3), name
