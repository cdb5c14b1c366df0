"""A few steps of each recipe on the built-in model: its subject is learned, and not another one of its class."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from costars import open_studio
from costars.concepts.load import load_concept
from costars.methods.prompts import with_article
from costars.model.families import count_cross_layers
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.model.predict import Conditioning, NoiseSchedule
from costars.resolve import match_concepts
from costars.train.attention_maps import attention_recorder
from costars.train.data import class_images
from costars.train.data.images import Example
from costars.train.data.latents import encode_examples
from costars.train.diffusion_loss import cell_weights, noise_errors
from costars.train.loop import TRAINING, train
from costars.train.recipes import RECIPES
from costars.train.results import write_concepts
from costars.train.task import TrainingTask
from costars.train.trainable import make_trainable
from costars_world.benchmarks import em, recipes
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import FIGURE_COUNTS, draw_portraits
from costars_world.training.concepts import PACK

TRAINING_IMAGES, TEST_IMAGES, SEEDS = 6, 4, 3
MARGIN = 0.01
# Few steps at high learning rates, to learn within seconds on one core.
FAST_SETTINGS = {
    "lora": {"steps": 16, "batch_size": 2, "unet_lr": 6e-3, "text_encoder_lr": 2e-3, "lr_warmup_steps": 2},
    "dreambooth": {"steps": 12, "batch_size": 2, "unet_lr": 3e-4, "num_class_images": 2},
    "textual-inversion": {"steps": 60, "batch_size": 4, "embedding_lr": 5e-2},
    "custom-diffusion": {"steps": 16, "batch_size": 2, "unet_lr": 3e-3, "embedding_lr": 3e-2, "num_class_images": 2},
    "ed-lora": {"steps": 16, "batch_size": 2, "unet_lr": 6e-3, "text_encoder_lr": 2e-3, "embedding_lr": 2e-2},
    "em": {"steps": 40, "batch_size": 4, "unet_lr": 1.5e-3, "embedding_lr": 2e-2, "embedding_only_steps": 10},
}
MAN_AND_DOG = 1  # index in em.SETS


@pytest.fixture(scope="module")
def model():
    return open_studio("cpu", "float32").model("builtin")


def fast_recipe(name):
    recipe = replace(RECIPES[name]["builtin"], **FAST_SETTINGS[name])
    if recipe.em is None:
        return recipe
    estep = replace(recipe.em.estep, timesteps=6, crf_size_px=32)  # the CRF takes most of the default E-step's time
    return replace(recipe, em=replace(recipe.em, estep=estep))


def make_subjects(recipe):
    """(subjects, identity of the first one, another identity of its class)."""
    if recipe.em is not None:
        identity = em.set_identities(MAN_AND_DOG)["man"]
        return em.make_set_subjects(MAN_AND_DOG), identity, identity_from_seed(5, "man")
    subject = recipes.make_recipe_subject("ana", recipe)
    return [replace(subject, examples=subject.examples[:TRAINING_IMAGES])], PACK["ana"], PACK["cleo"]


def draw_test_examples(identity, trigger):
    """Images of an identity that were not trained on, with captions that have the trigger."""
    plain, named = with_article(identity.class_name), with_article(f"{trigger} {identity.class_name}")
    pictures = draw_portraits(identity, TEST_IMAGES, seed=77, figure_counts=FIGURE_COUNTS)
    return [
        Example(p.image, p.caption.replace(plain, named, 1), p.find_figure(identity).visible_mask.astype(np.float32))
        for p in pictures
    ]


def untrained_concept(task, concept):
    """The concept before the first step: initial embeddings and unchanged weights."""
    with make_trainable(task) as trainable:
        tokens = trainable.concept_tokens(list(concept.tokens), task.recipe.per_layer_embeddings)
        return replace(concept, adapter={}, weights={}, tokens=tokens)


@torch.no_grad()
def mean_error(model, examples, concept):
    """Mean denoising error of the concept's figure in these images; the noise is the same in every call."""
    (own,) = match_concepts({"own": concept}, model).concepts.values()
    layers = count_cross_layers(model.unet) if concept.per_layer else 1
    (bucket,) = encode_examples(model, examples, max_aspect_ratio=1.0, size_conditioning=False).buckets
    weights = cell_weights(bucket.masks, bucket.latents.shape[-2:], 0.0)
    with text_adapter(model.encoders, own.adapter):
        texts = [model.encode_text(example.caption, learned=own.words) for example in examples]
    tokens = torch.stack([text.tokens.flatten(0, 1) for text in texts])
    pooled = None if texts[0].pooled is None else torch.cat([text.pooled for text in texts])
    conditioning = Conditioning(tokens, pooled, bucket.size_ids)
    schedule, errors = NoiseSchedule.from_scheduler(model.scheduler), []
    with (
        one_adapter_per_row(model.unet, "unet.", {"own": own.adapter}) as rows,
        rows.on(["own"] * TEST_IMAGES),
        attention_recorder(model.unet, layers),  # reads the text per layer
    ):
        for seed in range(SEEDS):
            generator = torch.Generator().manual_seed(seed)
            error = noise_errors(model.unet, schedule, bucket.latents, conditioning, generator, weights=weights)
            errors.append(float(error.mean()))
    return sum(errors) / SEEDS


@pytest.mark.parametrize("name", RECIPES)
def test_few_steps_learn_the_subject_and_not_its_class(model, tmp_path, monkeypatch, name):
    monkeypatch.setattr(class_images, "INFERENCE_STEPS", 8)  # with two steps the images do not show the class
    recipe = fast_recipe(name)
    subjects, identity, other_identity = make_subjects(recipe)
    task = TrainingTask(model, subjects, recipe)
    *events, result = train(task)
    assert sum(event.stage == TRAINING for event in events) == recipe.steps
    paths = [tmp_path / f"{subject.name}.safetensors" for subject in subjects]
    write_concepts(result, paths)
    concept = load_concept(paths[0], "own", "own")
    untrained = untrained_concept(task, concept)
    test_examples = [draw_test_examples(each, concept.trigger) for each in (identity, other_identity)]
    gain, gain_on_other = (
        1 - mean_error(model, examples, concept) / mean_error(model, examples, untrained) for examples in test_examples
    )
    assert gain > MARGIN and gain > gain_on_other + MARGIN, (gain, gain_on_other)
