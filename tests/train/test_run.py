"""Optimizer steps: non-finite losses, frozen embeddings, and checkpoints of other runs."""

import math
from dataclasses import replace

import pytest

from costars.errors import TrainError
from costars.train.checkpoint import load_checkpoint
from costars.train.loop import Progress, train
from costars.train.run import TrainingRun


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def take_steps(task, checkpoint, count, **options):
    """Train this many steps and stop."""
    events = train(task, checkpoint, **options)
    steps = [next(events) for _ in range(count)]
    events.close()
    return [step.loss for step in steps]


@pytest.fixture
def break_loss(monkeypatch):
    """Multiply the loss of a step by a value; returns a function that undoes it."""
    real = TrainingRun._accumulate

    def apply(step, value):
        class BrokenObjective:
            def __init__(self, objective):
                self.objective = objective

            def __getattr__(self, name):
                return getattr(self.objective, name)

            def loss(self, generator):
                return self.objective.loss(generator) * value

        def accumulate(run, part):
            if run.step + 1 == step:
                monkeypatch.setattr(run, "objective", BrokenObjective(run.objective))
            return real(run, part)

        monkeypatch.setattr(TrainingRun, "_accumulate", accumulate)
        return lambda: monkeypatch.setattr(TrainingRun, "_accumulate", real)

    return apply


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(
    small, make_task, short_recipe, same_concept, trace, checkpoint, break_loss, value
):
    task = make_task(short_recipe("textual-inversion", steps=4))
    *steps, result = train(task)
    losses, before = [step.loss for step in steps], trace(small.unet)
    undo = break_loss(3, value)
    with pytest.raises(
        TrainError, match=r"non-finite loss \((nan|inf)\) at step 3; training stopped, the last"
    ) as caught:
        list(train(task, checkpoint, save_every_s=0))
    assert "the last checkpoint is kept; resume it with lower learning rates" in str(caught.value)
    assert "\n" not in str(caught.value) and trace(small.unet) == before
    undo()
    *rest, resumed = train(task, checkpoint, resume=True)
    assert [step.loss for step in rest] == losses[2:]
    assert same_concept(resumed.concepts[0], result.concepts[0])
    break_loss(4, value)
    take_steps(task, checkpoint, 2)
    with pytest.raises(TrainError, match=r"at step 4; training stopped, the last checkpoint is kept"):
        list(train(task, checkpoint, resume=True))
    assert load_checkpoint(checkpoint)[1]["step"] == "2"


def test_step_before_a_non_finite_loss_is_not_saved(make_task, short_recipe, checkpoint, break_loss):
    """Its weights may be broken already."""
    task = make_task(short_recipe("textual-inversion", steps=4))
    take_steps(replace(task, recipe=replace(task.recipe, seed=7)), checkpoint, 1)
    saved = checkpoint.read_bytes()
    break_loss(3, math.nan)
    with pytest.raises(TrainError, match=r"at step 3; training stopped, start again with lower learning rates"):
        list(train(task, checkpoint))
    assert checkpoint.read_bytes() == saved
    checkpoint.unlink()
    with pytest.raises(TrainError, match=r"at step 3; training stopped, start again"):
        list(train(task, checkpoint))
    assert not checkpoint.exists()


def test_failed_first_step_leaves_no_checkpoint(make_task, short_recipe, checkpoint, break_loss):
    break_loss(1, math.nan)
    with pytest.raises(TrainError, match="at step 1; training stopped, start again with lower learning rates"):
        list(train(make_task(short_recipe("textual-inversion")), checkpoint))
    assert not checkpoint.exists()


def test_diverging_run_is_stopped(make_task, short_recipe):
    with pytest.raises(TrainError, match=r"non-finite (loss|gradient norm) .* with lower learning rates"):
        list(train(make_task(short_recipe("dreambooth", unet_lr=1e30, steps=5))))


def test_embeddings_freeze_at_the_norm_threshold(make_task, short_recipe):
    def change(**settings):
        task = make_task(short_recipe("custom-diffusion", steps=2, **settings))
        steps = (e for e in train(task) if isinstance(e, Progress) and e.learned)
        first, second = (step.learned["<mia>"]["text_encoder"].clone() for step in steps)
        return float((first - second).abs().max())

    assert change(embedding_norm_threshold=0.01) == 0 < change()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 4}, "started with rank=2, now rank=4; start again with --replace instead of --resume"),
        ({"num_new_tokens": 1}, "started with num_new_tokens=0, now num_new_tokens=1"),
    ],
)
def test_checkpoint_of_another_recipe_is_rejected(small, make_task, short_recipe, trace, checkpoint, changes, message):
    recipe = short_recipe("lora")
    take_steps(make_task(recipe), checkpoint, 1)
    saved, before = checkpoint.read_bytes(), trace(small.unet)
    with pytest.raises(TrainError) as caught:
        list(train(make_task(replace(recipe, **changes)), checkpoint, resume=True))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.read_bytes() == saved and trace(small.unet) == before


def test_some_settings_may_change_on_resumption(make_task, short_recipe, checkpoint):
    task = make_task(short_recipe("textual-inversion"))
    take_steps(task, checkpoint, 1)
    recipe = replace(task.recipe, steps=2, embedding_lr=1e-4)
    *steps, _ = train(replace(task, recipe=recipe), checkpoint, resume=True)
    assert [step.step for step in steps] == [2]


def test_checkpoint_of_another_model_or_subject_is_rejected(small, make_task, make_subject, short_recipe, checkpoint):
    recipe = short_recipe("textual-inversion")
    take_steps(make_task(recipe), checkpoint, 1)

    def rejected(message, *subject, model=small):
        with pytest.raises(TrainError) as caught:
            list(train(make_task(recipe, [make_subject(recipe, *subject)], model=model), checkpoint, resume=True))
        assert message in str(caught.value) and "\n" not in str(caught.value)

    other = replace(small, info=replace(small.info, sha256="other"))
    rejected("checkpoint.safetensors: started on another model; start again with --replace instead of", model=other)
    changed = "checkpoint.safetensors: images, captions or concepts have changed since the start; start again"
    for subject in (("bob",), ("mia", "dog"), ("mia", "woman", False)):  # words, captions, masks
        rejected(changed, *subject)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    rejected("not a readable checkpoint")
