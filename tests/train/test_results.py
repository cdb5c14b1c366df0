"""Trained concepts: what is written is what was trained, in a scene and in diffusers."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from costars import open_studio
from costars.concepts.export import export_concept
from costars.concepts.load import load_concept, read_card
from costars.concepts.saving import write_concept
from costars.errors import ConceptError, TrainError
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.resolve import match_concepts
from costars.sample.loop import denoise, prepare_sampler
from costars.train.loop import TRAINING, Progress, train
from costars.train.preview import make_preview
from costars.train.recipes import RECIPES
from costars.train.results import TrainingResult, write_concepts
from costars.types import Concept, DenoisingPath, LowRank

NAMES = ("lora", "dreambooth", "textual-inversion", "custom-diffusion", "ed-lora", "em")
FAST = {"unet_lr": 5e-3, "text_encoder_lr": 5e-3, "embedding_lr": 5e-2, "steps": 2, "alpha": 4}
PROMPT = "photo of a {} woman in the forest"


def sample(model, prompt, learned, adapters=None, adapter=None):
    """(1, c, h, w) after three guided steps, as a scene samples a member."""
    plan = prepare_sampler(model.scheduler, 3, model.device, (64, 64), 3.0, seed=5)
    texts = [model.encode_text(text, learned=learned) for text in (prompt, "")]
    path = DenoisingPath("one", *texts, adapter=adapter)
    *_, step = denoise(model, plan.noise(model), [path], plan, adapters=adapters)
    return step.latent


def sample_with_concept(model, prompt, concept):
    """`sample` with a concept loaded from a file."""
    (own,) = match_concepts({"mia": concept}, model).concepts.values()
    rows = one_adapter_per_row(model.unet, "unet.", {"mia": own.adapter})
    with rows as adapters, text_adapter(model.encoders, own.adapter):
        return sample(model, prompt, own.words, adapters, "mia")


@pytest.fixture(scope="module")
def trained(small, small15, make_task, short_recipe, tmp_path_factory):
    """Train a recipe, once; (model, prompt, concept read from its file, file, sample at the end of training)."""

    @cache
    def run(name, family="sdxl", vectors_per_token=1):
        model = small if family == "sdxl" else small15
        task = make_task(short_recipe(name, family, **FAST, vectors_per_token=vectors_per_token), model=model)
        path, latent = tmp_path_factory.mktemp(name) / "mia.safetensors", None
        prompt = PROMPT.format(task.subjects[0].trigger)
        for event in train(task):
            if isinstance(event, TrainingResult):
                write_concepts(event, [path])
            elif event.stage == TRAINING and event.step == event.total:
                latent = sample(model, prompt, event.learned)
        return model, prompt, load_concept(path, "mia", "mia"), path, latent

    return run


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("name", NAMES)
def test_loaded_concept_samples_as_the_trained_model(trained, name, family):
    model, prompt, concept, path, latent = trained(name, family)
    assert (concept.name, concept.class_name, concept.family) == ("mia", "woman", family)
    assert concept.format == ("diffusers" if name == "lora" else "costars")
    card = read_card(path)
    assert (card["base_sha256"], card["pictures"], card["family"]) == (model.info.sha256, 2, family)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    untrained = sample(model, prompt.replace(concept.trigger, ""), {})
    change = (latent - untrained).abs().max()
    error = (sample_with_concept(model, prompt, concept) - latent).abs().max()
    assert error < 0.01 * change, (error, change)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_jointly_trained_concepts_are_cast_in_a_scene(
    small, small15, make_subject, make_task, short_recipe, golden, sd15_folder, make_scene, tmp_path, family
):
    recipe, classes = short_recipe("em", family, **FAST), {"mia": "woman", "rex": "dog"}
    subjects = [make_subject(recipe, name, class_name) for name, class_name in classes.items()]
    *_, result = train(make_task(recipe, subjects, model=small if family == "sdxl" else small15))
    cast = {}
    for name, left in zip(classes, (0, 32), strict=True):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (left, 0, left + 32, 64))
        mask.save(tmp_path / f"{name}.png")
        cast[name] = {"concept": str(tmp_path / f"{name}.safetensors"), "where": str(tmp_path / f"{name}.png")}
    write_concepts(result, [tmp_path / f"{name}.safetensors" for name in classes])
    folder = golden / "tiny-sdxl" if family == "sdxl" else sd15_folder
    scene = make_scene(prompt="photo of {mia} and {rex}", cast=cast, model=str(folder), steps=3, start=0.34)
    picture = open_studio("cpu", "float32").render(scene)
    assert picture.lost == () and list(picture.plan.regions) == list(classes)
    assert picture.image.tobytes() != picture.plan.layout.image.tobytes()


@pytest.mark.parametrize("name", ["textual-inversion", "em"])
def test_weights_that_are_not_finite_are_neither_saved_nor_written(make_task, short_recipe, tmp_path, name):
    """The last step may break them; the checkpoint of the step before it stays."""
    checkpoint, task = tmp_path / "checkpoint.safetensors", make_task(short_recipe(name, steps=2))
    events = train(task, checkpoint, save_every_s=0)
    next(event for event in events if event.stage == TRAINING and event.step == event.total).learned["<mia>"][
        "text_encoder"
    ].fill_(torch.nan)
    saved = checkpoint.read_bytes()
    with pytest.raises(TrainError, match=r"^non-finite weights \(words/text_encoder/<mia>\) after step 2; the"):
        next(events)
    assert checkpoint.read_bytes() == saved
    events = train(task)
    *_, last = (next(events) for _ in range(2))
    last.learned["<mia>"]["text_encoder"].fill_(torch.inf)
    with pytest.raises(TrainError, match=r"^mia: non-finite weights in <mia>.text_encoder, so it is not written; "):
        next(events)


def test_weights_too_large_for_the_half_precision_of_files_are_not_written(make_task, short_recipe):
    events = train(make_task(short_recipe("lora", steps=1, unet_lr=1e30)))
    assert math.isfinite(next(events).loss)
    with pytest.raises(TrainError, match=r"^mia: non-finite weights in unet\..*, so it is not written; train again"):
        next(events)


def test_no_concept_is_written_if_one_is_not_finite(tmp_path):
    good, bad = (
        Concept(name, "woman", name, "sdxl", {"unet.x": LowRank(torch.ones(1, 2), torch.tensor([[v]]))}, name, "")
        for name, v in (("good", 1.0), ("bad", torch.nan))
    )
    targets = [tmp_path / f"{name}.safetensors" for name in ("good", "bad")]
    with pytest.raises(TrainError, match=r"^bad: non-finite weights in unet\.x, so it is not written"):
        write_concepts(TrainingResult((good, bad), {}), targets)
    with pytest.raises(ConceptError, match=r"^bad: non-finite weights in unet.x.lora_B.weight, so it is not written"):
        write_concept(bad, {}, targets[1])
    assert list(tmp_path.iterdir()) == []


def test_lora_and_embeddings_cover_all_layers(trained):
    model, _, concept, _, _ = trained("ed-lora")
    counts = {p: sum(k.startswith(p) for k in concept.adapter) for p in ("unet.", "text_encoder.", "text_encoder_2.")}
    assert counts == {"unet.": 4 * len(model.unet.attn_processors), "text_encoder.": 4 * 3, "text_encoder_2.": 4 * 4}
    # The last layer of text_encoder_2 is not read, so its LoRA stays zero.
    moved = [e.up.abs().max() > 0 for key, e in concept.adapter.items() if not key.startswith("text_encoder_2")]
    assert sum(moved) > 0.9 * len(moved)
    cross_layers = len(model.unet.attn_processors) // 2
    assert list(concept.tokens) == ["<mia1>", "<mia2>"]
    assert {t.shape for parts in concept.tokens.values() for t in parts.values()} == {(cross_layers, 32)}


def test_full_training_changes_every_weight(trained):
    model, _, concept, _, _ = trained("dreambooth")
    layers = dict(model.unet.named_modules())
    assert len(concept.weights) > 100
    assert not [k for k, w in concept.weights.items() if torch.equal(w, layers[k.removeprefix("unet.")].weight)]


def test_word_of_several_vectors_samples_as_trained(trained):
    model, prompt, concept, _, latent = trained("textual-inversion", vectors_per_token=3)
    assert concept.tokens["<mia>"]["text_encoder"].shape == (3, 32)
    assert torch.allclose(sample_with_concept(model, prompt, concept), latent, atol=1e-4)


def predict(unet, model, text, adapter=None):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = None if text.pooled is None else {"text_embeds": text.pooled, "time_ids": model.size_ids((64, 64))}
    with torch.no_grad(), one_adapter_per_row(unet, "unet.", {"mia": adapter or {}}) as rows, rows.on(["mia"]):
        return unet(latents, torch.tensor(300), text.tokens, added_cond_kwargs=added).sample


@pytest.fixture
def pipelines(pipeline, sd15_folder):
    """diffusers' pipeline of a family, and a function that encodes a prompt with it: (tokens, pooled or None)."""
    from diffusers import StableDiffusionPipeline

    def open_pipeline(family):
        if family == "sdxl":
            return pipeline, lambda prompt: pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0:3:2]
        sd15 = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
        return sd15, lambda prompt: (sd15.encode_prompt(prompt, "cpu", 1, False)[0], None)

    return open_pipeline


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_diffusers_loads_a_lora_with_the_same_effect(trained, pipelines, family):
    model, prompt, concept, path, _ = trained("lora", family)
    diffusers, encode = pipelines(family)
    diffusers.load_lora_weights(path)
    tokens, pooled = encode(prompt)
    with text_adapter(model.encoders, concept.adapter):
        text = model.encode_text(prompt)
    assert torch.allclose(text.tokens, tokens, atol=1e-5)
    assert text.pooled is pooled or torch.allclose(text.pooled, pooled, atol=1e-5)
    assert not torch.allclose(text.tokens, model.encode_text(prompt).tokens, atol=1e-3)
    predicted = predict(model.unet, model, text, concept.adapter)
    assert torch.allclose(predicted, predict(diffusers.unet, model, text), atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("name", ["textual-inversion", "custom-diffusion"])
def test_diffusers_loads_an_export_with_the_same_effect(trained, pipelines, tmp_path, name, family):
    model, prompt, concept, _, _ = trained(name, family)
    diffusers, encode = pipelines(family)
    folder = tmp_path / "exported"
    paths = {path.stem: path for path in export_concept(concept, {}, "diffusers", folder)}
    parts = [(diffusers.tokenizer, diffusers.text_encoder)]
    if family == "sdxl":
        parts.append((diffusers.tokenizer_2, diffusers.text_encoder_2))
        # With the outdated id 2 of old configs, transformers does not support added tokens.
        diffusers.text_encoder_2.text_model.eos_token_id = diffusers.tokenizer_2.eos_token_id
    word = "learned_embeds" if name == "textual-inversion" else "<mia>"
    for suffix, (tokenizer, encoder) in zip(("", "_2"), parts, strict=False):
        diffusers.load_textual_inversion(
            folder, weight_name=paths[word + suffix].name, tokenizer=tokenizer, text_encoder=encoder
        )
    text = model.encode_text(prompt, learned=concept.words)
    tokens, pooled = encode(prompt)
    assert torch.allclose(text.tokens, tokens, atol=1e-5)
    assert text.pooled is pooled or torch.allclose(text.pooled, pooled, atol=1e-5)
    if name == "custom-diffusion":
        weights = paths["pytorch_custom_diffusion_weights"].name
        diffusers.unet.load_attn_procs(folder, weight_name=weights, _pipeline=diffusers)
        (own,) = match_concepts({"mia": concept}, model).concepts.values()
        predicted = predict(model.unet, model, text, own.adapter)
        assert torch.allclose(predicted, predict(diffusers.unet, model, text), atol=1e-4)
        assert not torch.allclose(predicted, predict(model.unet, model, text), atol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_half_precision_model_is_trained_and_previewed(golden, make_task, short_recipe, name):
    model = load_model(Source("tiny", golden / "tiny-sdxl"), torch.device("cpu"), torch.bfloat16, 0, "attention")
    model = replace(model, info=replace(model.info, size_px=(64, 64)))
    task = make_task(short_recipe(name, steps=2), model=model)
    steps = (e for e in train(task) if isinstance(e, Progress) and e.stage == TRAINING)
    assert len([make_preview(task, step.learned) for step in steps]) == 2


def test_card_has_no_folders_of_this_machine(make_task, small, short_recipe):
    model = replace(small, info=replace(small.info, name="/home/me/models/tiny.safetensors"))
    *_, result = train(make_task(short_recipe("textual-inversion", steps=1), model=model))
    assert result.card["base_model"] == "tiny.safetensors"
