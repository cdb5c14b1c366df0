"""The loop: what it yields, that it goes on where it was stopped, and that the model stays as it was."""

import errno
import math
import multiprocessing
import os
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from PIL import Image
from safetensors import SafetensorError

from costars.errors import TrainError
from costars.train import checkpoint
from costars.train.checkpoint import load
from costars.train.data import class_images as prior
from costars.train.data.images import Example
from costars.train.loop import CLASS_IMAGES, TRAINING, Progress, train
from costars.train.results import TrainingResult
from costars.train.task import TrainingTask
from costars.train.optimizers import OPTIMIZERS
from costars.train.run import TrainingRun

NAMES = ("lora", "dreambooth", "textual-inversion", "custom-diffusion", "ed-lora")
forks = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked")


@pytest.fixture
def run(small, teaching):
    """Teach mia; returns (losses, concept)."""

    def of(recipe, *args, model=small, **options):
        *steps, taught = train(TrainingTask(model, [teaching(recipe)], recipe), *args, **options)
        (concept,) = taught.concepts
        return [step.loss for step in steps if step.stage == TRAINING], concept

    return of


def stopped(model, subjects, recipe, kept, after, **options):
    """Stop after so many steps; returns their losses."""
    events, losses = train(TrainingTask(model, subjects, recipe), kept, **options), []
    for event in events:
        if event.stage == TRAINING:
            losses.append(event.loss)
        if len(losses) == after:
            events.close()
    return losses


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_step_yields_its_loss_and_the_last_thing_is_what_was_taught(small, teaching, brief):
    recipe = brief("custom-diffusion", num_class_images=2)
    *steps, taught = train(TrainingTask(small, [teaching(recipe)], recipe))
    assert all(isinstance(step, Progress) for step in steps) and isinstance(taught, TrainingResult)
    told = [(step.stage, step.step, step.of) for step in steps]
    assert told == [*((CLASS_IMAGES, i, 2) for i in (1, 2)), *((TRAINING, i, 3) for i in (1, 2, 3))]
    losses = [step.loss for step in steps[2:]]
    assert all(0 < loss < 10 for loss in losses)
    assert 0 < steps[2].seconds < steps[3].seconds < steps[4].seconds
    assert steps[-1].learned["<mia>"]["text_encoder"].shape == (1, 1, 32)
    card, (concept,) = taught.card, taught.concepts
    assert (concept.name, concept.class_name, concept.trigger, concept.family) == ("mia", "woman", "<mia>", "sdxl")
    assert (card["base_sha256"], card["pictures"], card["recipe"]["rank"]) == (small.info.sha256, 2, 2)
    assert card["loss"] == pytest.approx(sum(losses) / 3, abs=1e-5)


def test_the_same_seed_gives_the_same_concept_and_another_seed_another(run, brief, same):
    losses, concept = run(brief("ed-lora", steps=2))
    again, second = run(brief("ed-lora", steps=2))
    others, other = run(brief("ed-lora", steps=2, seed=1))
    assert again == losses and same(concept, second)
    assert others != losses and not same(concept, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_as_it_was_also_when_the_teaching_is_stopped(small, teaching, brief, trace, name):
    parts = (small.unet, *(e.module for e in small.encoders), small.vae)
    before = [trace(part) for part in parts]
    recipe = brief(name, gradient_checkpointing=True)
    events = train(TrainingTask(small, [teaching(recipe)], recipe))
    next(event for event in events if event.stage == TRAINING)
    assert [trace(part) for part in parts] != before
    events.close()
    assert [trace(part) for part in parts] == before
    assert not small.unet.is_gradient_checkpointing


def test_gradient_checkpointing_changes_nothing(run, brief, same):
    """Also where words are looked at: what is computed twice is looked at as it was."""
    plain, spared = (
        run(brief("ed-lora", steps=1, prior_loss_weight=1.0, num_class_images=1, gradient_checkpointing=on))
        for on in (False, True)
    )
    assert plain[0] == spared[0] and same(plain[1], spared[1])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lora", {"optimizer": "adafactor"}),
        ("dreambooth", {}),
        ("textual-inversion", {"lr_warmup_steps": 3, "lr_decay_fraction": 0.5, "gradient_accumulation_steps": 2}),
        ("custom-diffusion", {}),
        ("ed-lora", {"embedding_norm_threshold": 0.01}),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_losses_as_an_unbroken_one(
    small, run, teaching, brief, same, trace, tmp_path, name, changes
):
    recipe, kept = brief(name, **changes), tmp_path / "work" / "checkpoint.safetensors"
    before = [trace(module) for module in (small.unet, *(e.module for e in small.encoders))]
    losses, concept = run(recipe)
    assert [trace(module) for module in (small.unet, *(e.module for e in small.encoders))] == before
    assert stopped(small, [teaching(recipe)], recipe, kept, 1) == losses[:1]
    rest, resumed = run(recipe, kept, resume=True)
    assert rest == losses[1:] and same(resumed, concept)


def test_a_run_that_had_ended_is_taken_up_at_its_end(run, brief, same, tmp_path):
    recipe, kept = brief("textual-inversion"), tmp_path / "checkpoint.safetensors"
    _, concept = run(recipe, kept)
    rest, again = run(recipe, kept, resume=True)
    assert rest == [] and same(again, concept)


def test_seconds_and_steps_count_all_pieces_of_a_run(small, teaching, brief, tmp_path):
    recipe, kept = brief("textual-inversion"), tmp_path / "checkpoint.safetensors"
    stopped(small, [teaching(recipe)], recipe, kept, 1)
    spent = float(load(kept)[1]["seconds"])
    first, *_, taught = train(TrainingTask(small, [teaching(recipe)], recipe), kept, resume=True)
    assert first.step == 2 and first.seconds > spent > 0
    assert taught.card["seconds"] >= round(spent, 1)


def test_without_resume_a_run_begins_anew(small, run, teaching, brief, tmp_path):
    recipe, kept = brief("textual-inversion"), tmp_path / "checkpoint.safetensors"
    begun = stopped(small, [teaching(recipe)], recipe, kept, 1)
    losses, _ = run(recipe, kept)
    assert len(losses) == 3 and losses[:1] == begun


def test_class_pictures_are_kept_beside_the_checkpoint_and_drawn_once(small, teaching, brief, tmp_path, monkeypatch):
    recipe, kept = brief("dreambooth", num_class_images=2), tmp_path / "checkpoint.safetensors"
    begun = stopped(small, [teaching(recipe)], recipe, kept, 1)
    assert files(tmp_path) == ["checkpoint.prior", "checkpoint.safetensors"]
    monkeypatch.setattr("costars.train.data.class_images.draw", None)
    assert stopped(small, [teaching(recipe)], recipe, kept, 1) == begun


@pytest.fixture
def beside():
    """What to teach beside given pictures of the class, one tall and one square."""

    def of(teaching, *colours):
        sizes = ((64, 64), (32, 128))
        others = [Example(Image.new("RGB", size, c), f"a {c} woman") for size, c in zip(sizes, colours, strict=False)]
        return replace(teaching, class_examples=others)

    return of


@pytest.mark.parametrize("name", ["dreambooth", "custom-diffusion", "lora"])
def test_given_class_pictures_are_learned_from_and_none_is_drawn(
    small, teaching, brief, beside, tmp_path, monkeypatch, name
):
    recipe, kept = brief(name, prior_loss_weight=1.0), tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr("costars.train.data.class_images.draw", None)

    def losses(*colours, **options):
        events = train(TrainingTask(small, [beside(teaching(recipe), *colours)], recipe), **options)
        *steps, taught = events
        assert all(step.stage == TRAINING for step in steps) and taught.card["class_images"] == len(colours)
        return [step.loss for step in steps]

    unbroken = losses("blue", "white")
    assert len(unbroken) == 3 and all(0 < loss < 10 for loss in unbroken)
    assert losses("blue", "white") == unbroken != losses("blue", "black")
    assert stopped(small, [beside(teaching(recipe), "blue", "white")], recipe, kept, 1) == unbroken[:1]
    assert files(tmp_path) == ["checkpoint.safetensors"]
    for others in (("blue", "black"), ("blue",)):
        with pytest.raises(TrainError, match="the pictures, captions or concepts are others than when it was begun"):
            losses(*others, kept=kept, resume=True)
    assert losses("blue", "white", kept=kept, resume=True) == unbroken[1:]


def test_class_captions_are_those_of_their_own_pictures(small, teaching, brief, beside):
    """Each size is a bucket of its own, and captions are numbered after those of the concept."""
    recipe = brief("dreambooth", max_aspect_ratio=4.0)
    others = beside(teaching(recipe), "blue", "white").class_examples
    found, said = prior.encode_class_images(small, [*others, *others], recipe, 7)
    assert said == ("a blue woman", "a white woman")
    shown = {tuple(bucket.latents.shape[-2:]): bucket.caption_indices for bucket in found.buckets}
    assert shown == {(8, 8): (7, 7), (16, 4): (8, 8)}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "lora",
            {},
            "mia: class_images have no effect with prior_loss_weight=0; set prior_loss_weight=1, or remove",
        ),
        ("em", {}, "mia: class_images have no effect with prior_loss_weight=0; remove class_images"),
        (
            "dreambooth",
            {"caption": "a Mia woman"},
            "the class caption of a.png, 'a Mia woman', contains the trigger 'mia'",
        ),
        ("dreambooth", {"caption": None}, "mia: no class caption of a.png; describe the image"),
    ],
)
def test_class_pictures_that_are_of_no_use_are_refused(small, teaching, brief, name, changes, said):
    recipe = brief(name)
    other = replace(Example(Image.new("RGB", (64, 64)), "a woman", name="a.png"), **changes)
    with pytest.raises(TrainError) as caught:
        next(train(TrainingTask(small, [replace(teaching(recipe), class_examples=[other])], recipe)))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_class_pictures_are_given_for_all_concepts_or_for_none(small, teaching, brief, beside):
    recipe = brief("custom-diffusion")
    each = [beside(teaching(recipe), "blue"), teaching(recipe, "rex", "dog")]
    with pytest.raises(TrainError, match="rex: no class_images, but another concept has some; give them for all or"):
        next(train(TrainingTask(small, each, recipe)))


@pytest.mark.parametrize("change", ["seed", "class", "model"])
def test_class_pictures_of_another_run_are_not_taken(small, teaching, brief, tmp_path, change):
    recipe, kept = brief("dreambooth"), tmp_path / "checkpoint.safetensors"
    events = train(TrainingTask(small, [teaching(recipe)], recipe), kept)
    next(event for event in events if event.stage == TRAINING)
    events.close()
    before = load(kept.with_suffix(".prior"))[0]["0"]
    model, class_name = small, "woman"
    if change == "seed":
        recipe = replace(recipe, seed=1)
    elif change == "class":
        class_name = "dog"
    else:
        model = replace(small, info=replace(small.info, sha256="other"))
    stopped(model, [teaching(recipe, class_name=class_name)], recipe, kept, 1)
    after, info = load(kept.with_suffix(".prior"))
    assert facts["base_sha256"] == model.info.sha256
    assert torch.equal(after["0"], before) == (change == "model")  # it only says that it is another


def _child(model, subjects, recipe, kept):
    for _ in train(TrainingTask(model, subjects, recipe), kept, save_every_s=0):
        pass


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_that_is_killed_goes_on_from_its_checkpoint(small, run, teaching, brief, same, tmp_path):
    recipe, kept = brief("textual-inversion", steps=12), tmp_path / "checkpoint.safetensors"
    child = multiprocessing.get_context("fork").Process(target=_child, args=(small, [teaching(recipe)], recipe, kept))
    child.start()
    until = time.monotonic() + 60
    while not (kept.exists() and int(load(kept)[1]["step"]) >= 2) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    done = int(load(kept)[1]["step"])
    assert 2 <= done < recipe.steps
    rest, resumed = run(recipe, kept, resume=True)
    losses, concept = run(recipe)
    assert rest == losses[done:] and same(resumed, concept)


def test_ctrl_c_between_and_within_steps_keeps_what_was_learned(small, run, teaching, brief, tmp_path, monkeypatch):
    recipe, kept = brief("textual-inversion"), tmp_path / "checkpoint.safetensors"
    events = train(TrainingTask(small, [teaching(recipe)], recipe), kept)
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)
    assert load(kept)[1]["step"] == "1"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        events = train(TrainingTask(small, [teaching(recipe)], recipe), kept, resume=True)
        next(events)
        patch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(events)
    assert load(kept)[1]["step"] == "2"
    rest, _ = run(recipe, kept, resume=True)
    assert rest == run(recipe)[0][2:]


@pytest.fixture
def broken_at(monkeypatch):
    """Make the loss of one step something else."""
    real = TrainingRun._part

    def of(step, value):
        class Broken:
            def __init__(self, objective):
                self.objective = objective

            def __getattr__(self, name):
                return getattr(self.objective, name)

            def loss(self, generator):
                return self.objective.loss(generator) * value

        def broken(run, part):
            if run.step + 1 == step:
                monkeypatch.setattr(run, "objective", Broken(run.objective))
            return real(run, part)

        monkeypatch.setattr(TrainingRun, "_part", broken)
        return lambda: monkeypatch.setattr(TrainingRun, "_part", real)

    return of


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint_before_it(
    small, run, teaching, brief, same, trace, tmp_path, broken_at, value
):
    recipe, kept = brief("textual-inversion", steps=4), tmp_path / "checkpoint.safetensors"
    losses, concept = run(recipe)
    before = trace(small.unet)
    mended = broken_at(3, value)
    with pytest.raises(TrainError, match=r"step 3: the loss is (nan|inf).*; go on from the checkpoint with") as caught:
        list(train(TrainingTask(small, [teaching(recipe)], recipe), kept, save_every_s=0))
    assert "\n" not in str(caught.value) and trace(small.unet) == before
    mended()
    rest, resumed = run(recipe, kept, resume=True)
    assert rest == losses[2:] and same(resumed, concept)
    broken_at(4, value)
    stopped(small, [teaching(recipe)], recipe, kept, 2)
    with pytest.raises(TrainError, match=r"step 4: .*; go on from the checkpoint with lower rates"):
        list(train(TrainingTask(small, [teaching(recipe)], recipe), kept, resume=True))
    assert load(kept)[1]["step"] == "2"


def test_the_step_before_a_loss_that_is_no_number_is_not_kept(small, teaching, brief, tmp_path, broken_at):
    """Its weights may be ruined already."""
    recipe, kept = brief("textual-inversion", steps=4), tmp_path / "checkpoint.safetensors"
    older = replace(recipe, seed=7)
    stopped(small, [teaching(older)], older, kept, 1)
    saved = kept.read_bytes()
    broken_at(3, math.nan)
    with pytest.raises(TrainError, match=r"step 3: .*; begin anew with lower rates"):
        list(train(TrainingTask(small, [teaching(recipe)], recipe), kept))
    assert kept.read_bytes() == saved
    kept.unlink()
    with pytest.raises(TrainError, match=r"step 3: .*; begin anew with lower rates"):
        list(train(TrainingTask(small, [teaching(recipe)], recipe), kept))
    assert files(tmp_path) == []


def test_a_first_step_that_goes_wrong_leaves_nothing_to_go_on_from(small, teaching, brief, tmp_path, broken_at):
    recipe = brief("textual-inversion")
    broken_at(1, math.nan)
    with pytest.raises(TrainError, match="so it stops here; begin anew with lower rates"):
        list(train(TrainingTask(small, [teaching(recipe)], recipe), tmp_path / "checkpoint.safetensors"))
    assert files(tmp_path) == []


def test_a_step_that_is_half_taken_is_not_kept(small, teaching, brief, tmp_path, monkeypatch):
    recipe, kept, real = brief("textual-inversion"), tmp_path / "checkpoint.safetensors", torch.optim.AdamW.step
    events = train(TrainingTask(small, [teaching(recipe)], recipe), kept, save_every_s=0)
    next(events)

    def interrupted(optimizer):
        real(optimizer)
        raise KeyboardInterrupt

    next(events)
    saved = kept.read_bytes()
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert kept.read_bytes() == saved


def test_other_random_numbers_are_as_if_nothing_was_taught(run, brief):
    before = torch.get_rng_state()
    run(brief("lora", steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_absurd_rate_is_found_out(small, teaching, brief):
    recipe = brief("dreambooth", unet_lr=1e30, steps=5)
    with pytest.raises(TrainError, match=r"the loss is .* with lower rates"):
        list(train(TrainingTask(small, [teaching(recipe)], recipe)))


def _full_disk(monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)


def test_a_full_disk_takes_nothing_away(small, run, teaching, brief, same, trace, tmp_path, monkeypatch):
    """The run goes on, the checkpoint before it stays, and one step says so."""
    recipe, kept = brief("textual-inversion", steps=5), tmp_path / "checkpoint.safetensors"
    losses, concept = run(recipe)
    stopped(small, [teaching(recipe)], recipe, kept, 2)
    saved, before = kept.read_bytes(), trace(small.unet)
    with monkeypatch.context() as patch:
        _full_disk(patch)
        *steps, taught = train(TrainingTask(small, [teaching(recipe)], recipe), kept, resume=True, save_every_s=0)
    assert [step.loss for step in steps] == losses[2:] and same(taught.concepts[0], concept)
    said, *others = (step.note for step in steps)
    assert said.startswith(f"{kept}: cannot be written (Error while serializing: I/O error: No space left on device")
    assert "the teaching goes on, the checkpoint before it stays" in said and others == ["", ""]
    assert kept.read_bytes() == saved and files(tmp_path) == ["checkpoint.safetensors"]
    assert trace(small.unet) == before
    rest, resumed = run(recipe, kept, resume=True)
    assert rest == losses[2:] and same(resumed, concept)


def test_a_checkpoint_is_tried_again_where_the_disk_was_full(small, teaching, brief, tmp_path, monkeypatch):
    recipe, kept, real = brief("textual-inversion"), tmp_path / "checkpoint.safetensors", TrainingRun.save

    def save(run, kept):
        if run.step < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(run, kept)

    monkeypatch.setattr(TrainingRun, "save", save)
    events = train(TrainingTask(small, [teaching(recipe)], recipe), kept, save_every_s=0)
    notes = [next(events).note for _ in range(3)]
    assert load(kept)[1]["step"] == "3"
    said = (
        f"{kept}: cannot be written (No space left on device); the teaching goes on, there is no checkpoint of it yet"
    )
    assert [note[: len(said)] for note in notes] == [said, "", ""] and "\n" not in notes[0]
    events.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 4}, "was begun with rank=2, now it is 4; begin anew with --replace in place of --resume"),
        ({"num_new_tokens": 1}, "was begun with num_new_tokens=0, now it is 1"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(small, teaching, brief, trace, tmp_path, changes, said):
    recipe, kept = brief("lora"), tmp_path / "checkpoint.safetensors"
    stopped(small, [teaching(recipe)], recipe, kept, 1)
    saved, before = kept.read_bytes(), trace(small.unet)
    other = replace(recipe, **changes)
    with pytest.raises(TrainError) as caught:
        list(train(TrainingTask(small, [teaching(other)], other), kept, resume=True))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert kept.read_bytes() == saved and trace(small.unet) == before


def test_a_checkpoint_of_another_model_other_words_or_a_damaged_one_is_refused(small, teaching, brief, tmp_path):
    recipe, kept = brief("textual-inversion"), tmp_path / "checkpoint.safetensors"
    stopped(small, [teaching(recipe)], recipe, kept, 1)
    other = replace(small, info=replace(small.info, sha256="other"))

    def refused(model, said, *changes):
        with pytest.raises(TrainError) as caught:
            list(train(TrainingTask(model, [teaching(recipe, *changes)], recipe), kept, resume=True))
        assert said in str(caught.value) and "\n" not in str(caught.value)

    refused(other, "checkpoint.safetensors: was begun on another model; begin anew with --replace in place of")
    others = "checkpoint.safetensors: the pictures, captions or concepts are others than when it was begun; begin anew"
    for changes in (("bob",), ("mia", "dog"), ("mia", "woman", False)):  # words, captions, masks
        refused(small, others, *changes)
    kept.write_bytes(kept.read_bytes()[:-10])
    refused(small, "not a readable checkpoint")


def test_a_learned_word_is_another_in_capitals(small, teaching, brief):
    """No text encoder tells ANA from ana, but learned words are read letter by letter."""
    recipe, word = brief("lora", steps=1), brief("textual-inversion", steps=1)

    def shouted(recipe):
        whole = teaching(recipe)
        examples = [replace(e, caption=e.caption.replace(whole.trigger, whole.trigger.upper())) for e in whole.examples]
        return list(train(TrainingTask(small, [replace(whole, examples=examples)], recipe)))

    assert len(shouted(recipe)) == 2
    with pytest.raises(TrainError, match="'photo of a <MIA> woman', lacks the trigger '<mia>'"):
        shouted(word)


def test_full_precision_wants_a_model_in_it(small, teaching, brief):
    recipe = brief("dreambooth", precision="fp32")
    with pytest.raises(TrainError, match="precision=fp32: the model is in bfloat16; open it with --dtype float32"):
        next(train(TrainingTask(replace(small, dtype=torch.bfloat16), [teaching(recipe)], recipe)))


def test_what_cannot_be_taught_is_told_before_class_pictures_are_drawn(small, teaching, brief, monkeypatch):
    recipe = brief("custom-diffusion")
    monkeypatch.setattr("costars.train.data.class_images.draw", None)
    with pytest.raises(TrainError, match="class 'zxqvrobot': the tokenizer splits it into"):
        next(train(TrainingTask(small, [teaching(recipe, class_name="zxqvrobot")], recipe)))


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        (None, "mia: no images; add at least one"),
        ("a miami woman", "mia: the caption of red.png, 'a miami woman', lacks the trigger 'mia'"),
    ],
)
def test_pictures_without_their_words_are_refused_before_anything_is_done(
    small, teaching, brief, tmp_path, caption, said
):
    recipe = brief("lora")
    whole = teaching(recipe)
    examples = [replace(e, caption=caption) for e in whole.examples] if caption else []
    with pytest.raises(TrainError) as caught:
        next(train(TrainingTask(small, [replace(whole, examples=examples)], recipe), tmp_path / "checkpoint.safetensors"))
    assert said in str(caught.value) and files(tmp_path) == []


def test_words_kept_in_masks_want_masks(small, teaching, brief, trace):
    recipe, before = brief("ed-lora"), trace(small.unet)
    with pytest.raises(TrainError, match=r"a picture has none; put NAME\.mask\.png beside each"):
        list(train(TrainingTask(small, [teaching(recipe, masked=False)], recipe)))
    assert trace(small.unet) == before


def test_what_lies_outside_the_masks_is_not_learned_where_it_does_not_count(small, teaching, brief):
    def losses(outside, masked=True):
        recipe = brief("textual-inversion", steps=1, background_loss_weight=outside)
        return [e.loss for e in train(TrainingTask(small, [teaching(recipe, masked=masked)], recipe)) if isinstance(e, Progress)]

    assert losses(1.0) == losses(1.0, masked=False) != losses(0.0)


@pytest.mark.parametrize(("name", "changes"), [("dreambooth", {}), ("lora", {"text_encoder": "none"})])
def test_what_does_not_learn_is_read_once(small, teaching, brief, name, changes):
    recipe = brief(name, **changes)
    lesson = teaching(recipe)
    events = train(TrainingTask(small, [replace(lesson, examples=lesson.examples[:1])], recipe))
    next(event for event in events if event.stage == TRAINING)

    def again(*_):
        raise AssertionError("encoded again")

    with ExitStack() as stack:
        for module in (small.vae.encoder, *(e.module for e in small.encoders)):
            stack.enter_context(module.register_forward_pre_hook(again))
        *rest, taught = events
    assert [event.step for event in rest] == [2, 3] and isinstance(taught, TrainingResult)


def test_words_stop_where_their_norm_is_reached(small, teaching, brief):
    def drift(**changes):
        recipe = brief("custom-diffusion", steps=2, **changes)
        steps = (e for e in train(TrainingTask(small, [teaching(recipe)], recipe)) if isinstance(e, Progress) and e.learned)
        first, second = (step.learned["<mia>"]["text_encoder"].clone() for step in steps)
        return float((first - second).abs().max())

    assert drift(embedding_norm_threshold=0.01) == 0 < drift()


def test_two_concepts_are_taught_together_and_each_has_words_of_its_own(small, teaching, brief):
    recipe = brief("custom-diffusion")
    each = [teaching(recipe), teaching(recipe, "rex", "dog")]
    *_, taught = train(TrainingTask(small, each, recipe))
    assert [c.trigger for c in taught.concepts] == ["<mia>", "<rex>"]
    assert [list(c.tokens) for c in taught.concepts] == [["<mia>"], ["<rex>"]]
    assert taught.card["pictures"] == 4


def _process(rank, port, model, subjects, recipe, kept, told):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    PartialState._reset_state()
    *steps, taught = train(TrainingTask(model, subjects, recipe), kept, save_every_s=0)
    vectors = [{part: t.tolist() for part, t in c.tokens[c.trigger].items()} for c in taught.concepts]
    told.put((rank, [step.loss for step in steps if step.stage == TRAINING], vectors))
    told.close()
    told.join_thread()
    torch.distributed.destroy_process_group()


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_average_their_gradients(small, teaching, brief, tmp_path, monkeypatch):
    """Each takes batches of its own: together they are one process that takes both before it steps.

    A batch of one picture has the word of one concept alone.
    """
    # Adam divides by the size of the gradients, and clipping by their norm: neither would see a sum.
    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda groups, recipe: torch.optim.SGD(groups))
    rates = {"embedding_lr": 10.0, "unet_lr": 1e-2, "max_grad_norm": 0.0, "batch_size": 1}
    recipe, kept = brief("custom-diffusion", **rates), tmp_path / "checkpoint.safetensors"
    both_taught = [teaching(recipe), teaching(recipe, "rex", "dog")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    both = [
        context.Process(target=_process, args=(rank, port, small, both_taught, recipe, kept, told)) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    (_, first, left), (_, second, right) = sorted((told.get(timeout=100) for _ in both), key=lambda one: one[0])
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert left == right and first != second
    *steps, taught = train(TrainingTask(small, both_taught, replace(recipe, gradient_accumulation_steps=2)))
    losses = [step.loss for step in steps if step.stage == TRAINING]
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(losses, rel=1e-3)
    for concept, vectors in zip(taught.concepts, left, strict=True):
        for encoder in small.encoders:
            table, word = encoder.module.get_input_embeddings().weight, concept.tokens[concept.trigger][encoder.name]
            moved = (word - table[encoder.tokenizer(concept.class_name).input_ids[1]]).abs().max()
            assert (torch.tensor(vectors[encoder.name]) - word).abs().max() < 0.02 * moved
    assert files(tmp_path) == ["checkpoint.prior", "checkpoint.safetensors"]


def test_class_pictures_that_were_drawn_before_a_stop_are_kept(small, teaching, brief, tmp_path):
    recipe, kept = brief("dreambooth", num_class_images=3), tmp_path / "checkpoint.safetensors"
    events = train(TrainingTask(small, [teaching(recipe)], recipe), kept)
    next(events), next(events)
    events.close()
    assert files(tmp_path) == ["checkpoint.prior"] and sorted(load(tmp_path / "checkpoint.prior")[0]) == ["0", "1"]


def test_a_checkpoint_of_other_layers_changes_nothing():
    mine, others = ({name: torch.nn.Parameter(torch.ones(2))} for name in ("up", "down"))
    optimizer = torch.optim.AdamW(mine.values())
    state = checkpoint.collect_state(others, torch.optim.AdamW(others.values()))
    with pytest.raises(TrainError, match="the checkpoint is of other layers or words; begin anew"):
        checkpoint.load_state(state, mine, optimizer)
    assert mine["up"].tolist() == [1, 1]
