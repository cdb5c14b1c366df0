"""A few steps of each recipe on the built-in model: who is taught is learned, and not somebody else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from costars import open_studio
from costars.concepts.load import load_concept
from costars.methods.prompts import with_article
from costars.model.families import count_cross_layers
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.model.predict import NoiseSchedule
from costars.resolve import fitted
from costars.train import results
from costars.train.attention_maps import record_attention
from costars.train.data import class_images as prior
from costars.train.data.images import Example
from costars.train.data.latents import encode_examples
from costars.train.diffusion_loss import cell_weights, noise_errors
from costars.train.loop import TRAINING, train
from costars.train.task import TrainingTask
from costars.train.recipes import RECIPES
from costars.train.trainable import make_trainable
from costars_world.benchmarks import em, recipes
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import FIGURE_COUNTS, draw_portraits
from costars_world.training.concepts import PACK

TAUGHT, HELD_OUT, SEEDS = 6, 4, 3
MARGIN = 0.01
# Few and fast: what is learned in seconds on one core.
HASTY = {
    "lora": {"steps": 24, "batch_size": 2, "unet_lr": 6e-3, "text_encoder_lr": 2e-3, "lr_warmup_steps": 2},
    "dreambooth": {"steps": 20, "batch_size": 2, "unet_lr": 3e-4, "num_class_images": 2},
    "textual-inversion": {"steps": 60, "batch_size": 4, "embedding_lr": 5e-2},
    "custom-diffusion": {"steps": 24, "batch_size": 2, "unet_lr": 3e-3, "embedding_lr": 3e-2, "num_class_images": 2},
    "ed-lora": {"steps": 24, "batch_size": 2, "unet_lr": 6e-3, "text_encoder_lr": 2e-3, "embedding_lr": 2e-2},
    "em": {"steps": 40, "batch_size": 4, "unet_lr": 1.5e-3, "embedding_lr": 2e-2, "embedding_only_steps": 10},
}
MAN_AND_DOG = 1  # of em.SETS


@pytest.fixture(scope="module")
def model():
    return open_studio("cpu", "float32").model("builtin")


def recipe_of(name):
    recipe = replace(RECIPES[name]["builtin"], **HASTY[name])
    if recipe.em is None:
        return recipe
    return replace(recipe, em=replace(recipe.em, estep=replace(recipe.em.estep, timesteps=10)))


def lesson(recipe):
    """(what is taught, who the first of them is, somebody else of that class)."""
    if recipe.em is not None:
        who = em.cast_of(MAN_AND_DOG)["man"]
        return em.lessons(MAN_AND_DOG), who, identity_from_seed(5, "man")
    own = recipes.lesson("ana", recipe)
    return [replace(own, examples=own.examples[:TAUGHT])], PACK["ana"], PACK["cleo"]


def pictures(who, trigger):
    """Pictures that nobody was taught from, of whoever is said to be the one that was."""
    said, called = with_article(who.class_name), with_article(f"{trigger} {who.class_name}")
    return [
        Example(p.image, p.caption.replace(said, called, 1), p.find_figure(who).visible_mask.astype(np.float32))
        for p in draw_portraits(who, HELD_OUT, seed=77, figure_counts=FIGURE_COUNTS)
    ]


def as_begun(model, lessons, recipe, concept):
    """The first concept before any step: words as they begin, and nothing changed."""
    with make_trainable(model, lessons, recipe) as trained:
        return replace(
            concept, adapter={}, weights={}, tokens=trained.tokens(list(concept.tokens), recipe.per_layer_embeddings)
        )


@torch.no_grad()
def error(model, examples, concept):
    """The error of the predicted noise where these pictures show who is meant, at the same noise each time."""
    (own,) = fitted({"own": concept}, model).concepts.values()
    layers = count_cross_layers(model.unet) if concept.per_layer else 1
    (bucket,), total = encode_examples(model, examples, max_aspect_ratio=1.0, size_conditioning=False).buckets, 0.0
    shown, levels = (
        cell_weights(bucket.masks, bucket.latents.shape[-2:], 0.0),
        NoiseSchedule.from_scheduler(model.scheduler),
    )
    with text_adapter(model.encoders, own.adapter):
        texts = [model.encode_text(example.caption, learned=own.words) for example in examples]
    tokens = torch.stack([text.tokens.flatten(0, 1) for text in texts])
    pooled = None if texts[0].pooled is None else torch.cat([text.pooled for text in texts])
    with (
        one_adapter_per_row(model.unet, "unet.", {"own": own.adapter}) as rows,
        rows.on(["own"] * HELD_OUT),
        record_attention(model.unet, layers),
    ):
        for seed in range(SEEDS):
            noise, told = torch.Generator().manual_seed(seed), ((tokens, pooled), bucket.size_ids)
            found = noise_errors(model.unet, levels, bucket.latents, *told, noise, weights=shown)
            total += float(found.mean())
    return total / SEEDS


@pytest.mark.parametrize("name", RECIPES)
def test_a_few_steps_teach_who_is_shown_and_nobody_else(model, tmp_path, monkeypatch, name):
    monkeypatch.setattr(prior, "INFERENCE_STEPS", 20)  # in two the class would not be seen
    recipe = recipe_of(name)
    lessons, who, other = lesson(recipe)
    *events, taught = train(TrainingTask(model, lessons, recipe))
    assert sum(event.stage == TRAINING for event in events) == recipe.steps
    paths = [tmp_path / f"{each.name}.safetensors" for each in lessons]
    results.write(taught, paths)
    concept = load_concept(paths[0], "own", "own")
    before = as_begun(model, lessons, recipe, concept)
    shown = [pictures(whoever, concept.trigger) for whoever in (who, other)]
    gain, gain_on_other = (1 - error(model, each, concept) / error(model, each, before) for each in shown)
    assert gain > MARGIN and gain > gain_on_other + MARGIN, (gain, gain_on_other)
