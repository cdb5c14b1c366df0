"""What a training task derives from its subjects and recipe."""

from dataclasses import replace

import pytest

from costars.errors import TrainError


def test_new_words_and_their_vectors(make_task, make_subject, short_recipe):
    recipe = short_recipe("textual-inversion", vectors_per_token=3)
    task = make_task(recipe, [make_subject(recipe), make_subject(recipe, "rex", "dog")])
    assert task.vectors_per_word == {"<mia>": 3, "<rex>": 3}
    assert task.embedding_layers == 1 and len(task.examples) == 4
    assert task.class_captions == ("photo of a woman", "a woman in the forest", "photo of a dog", "a dog in the forest")


def test_per_layer_embeddings_have_one_layer_per_cross_attention(small, make_task, short_recipe):
    task = make_task(short_recipe("ed-lora"))
    assert task.embedding_layers == len(small.unet.attn_processors) // 2
    assert task.vectors_per_word == {"<mia1>": 1, "<mia2>": 1}


def test_checked_task_has_a_precision_and_usable_subjects(make_task, make_subject, short_recipe):
    assert make_task(short_recipe("lora")).checked().recipe.precision in ("bf16", "fp32")
    with pytest.raises(TrainError, match="lacks the trigger"):
        subject = make_subject(short_recipe("lora"))
        make_task(short_recipe("textual-inversion"), [replace(subject, trigger="zxq")]).checked()
