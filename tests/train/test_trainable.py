"""Trainable parameters: their groups, and the initial embeddings of several concepts."""

import pytest
import torch

from costars.train.trainable import make_trainable


def test_parameter_groups_have_the_learning_rates_of_their_parts(make_task, short_recipe):
    recipe = short_recipe("ed-lora")
    with make_trainable(make_task(recipe)) as trainable:
        groups = trainable.parameter_groups(recipe)
        assert [group["lr"] for group in groups] == [recipe.unet_lr, recipe.text_encoder_lr, recipe.embedding_lr]
        assert [group["is_embedding"] for group in groups] == [False, False, True]
        assert [group["weight_decay"] for group in groups] == [recipe.weight_decay, recipe.weight_decay, 0.0]
        assert sum(len(group["params"]) for group in groups) == len(trainable.named_parameters())


def test_frozen_embeddings_have_no_gradient(make_task, short_recipe):
    with make_trainable(make_task(short_recipe("textual-inversion"))) as trainable:
        (parameter, _) = trainable.named_parameters().values()
        parameter.grad = torch.ones_like(parameter)
        trainable.freeze_embeddings()
        assert parameter.grad is None and not parameter.requires_grad
        assert trainable.embedding_norm() > 0


@pytest.fixture
def initial_embeddings(tiny, make_subject, make_task, short_recipe):
    """Initial embeddings {word: (1, 1, d)} in the first text encoder for concepts of these classes."""

    def make(**classes):
        recipe = short_recipe("textual-inversion")
        subjects = [make_subject(recipe, name, class_name) for name, class_name in classes.items()]
        with make_trainable(make_task(recipe, subjects, model=tiny)) as trainable:
            return {word: parts["text_encoder"] for word, parts in trainable.learned_words.items()}

    return make


def test_two_concepts_of_one_class_start_from_different_embeddings(tiny, initial_embeddings):
    encoder = tiny.encoders[0]
    table = encoder.module.get_input_embeddings().weight
    woman = table[encoder.tokenizer("woman").input_ids[1]]
    shared = initial_embeddings(mia="woman", eve="Woman")
    assert not torch.equal(shared["<mia>"], shared["<eve>"])
    assert all(torch.allclose(vectors[0, 0], woman, atol=0.06 * float(table.std())) for vectors in shared.values())
    again = initial_embeddings(mia="woman", eve="Woman")
    assert all(torch.equal(again[word], vectors) for word, vectors in shared.items())
    assert torch.equal(initial_embeddings(mia="woman", rex="dog")["<mia>"][0, 0], woman)
