"""The training loop: its events, resumption, and that the model is restored."""

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

from costars.errors import TrainError
from costars.train.checkpoint import load_checkpoint
from costars.train.data.images import Example
from costars.train.loop import CLASS_IMAGES, TRAINING, Progress, train
from costars.train.optimizers import OPTIMIZERS
from costars.train.results import TrainingResult

NAMES = ("lora", "dreambooth", "textual-inversion", "custom-diffusion", "ed-lora")
can_fork = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked")


@pytest.fixture
def run(make_task):
    """Train mia; returns (losses, concept)."""

    def run(recipe, *args, **options):
        *steps, result = train(make_task(recipe), *args, **options)
        (concept,) = result.concepts
        return [step.loss for step in steps if step.stage == TRAINING], concept

    return run


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def train_and_stop(task, checkpoint, after, **options):
    """Train and stop after this many steps; returns their losses."""
    events, losses = train(task, checkpoint, **options), []
    for event in events:
        if event.stage == TRAINING:
            losses.append(event.loss)
        if len(losses) == after:
            events.close()
    return losses


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_events_are_class_images_steps_and_the_result(make_task, short_recipe, small):
    *steps, result = train(make_task(short_recipe("custom-diffusion", num_class_images=2)))
    assert all(isinstance(step, Progress) for step in steps) and isinstance(result, TrainingResult)
    stages = [(step.stage, step.step, step.total) for step in steps]
    assert stages == [*((CLASS_IMAGES, i, 2) for i in (1, 2)), *((TRAINING, i, 3) for i in (1, 2, 3))]
    losses = [step.loss for step in steps[2:]]
    assert all(0 < loss < 10 for loss in losses)
    assert 0 < steps[2].seconds < steps[3].seconds < steps[4].seconds
    assert steps[-1].learned["<mia>"]["text_encoder"].shape == (1, 1, 32)
    card, (concept,) = result.card, result.concepts
    assert (concept.name, concept.class_name, concept.trigger, concept.family) == ("mia", "woman", "<mia>", "sdxl")
    assert (card["base_sha256"], card["pictures"], card["recipe"]["rank"]) == (small.info.sha256, 2, 2)
    assert card["loss"] == pytest.approx(sum(losses) / 3, abs=1e-5)


def test_seed_determines_the_concept(run, short_recipe, same_concept):
    losses, concept = run(short_recipe("ed-lora", steps=2))
    same_losses, same = run(short_recipe("ed-lora", steps=2))
    other_losses, other = run(short_recipe("ed-lora", steps=2, seed=1))
    assert same_losses == losses and same_concept(concept, same)
    assert other_losses != losses and not same_concept(concept, other)


def test_training_does_not_change_the_global_random_state(run, short_recipe):
    before = torch.get_rng_state()
    run(short_recipe("lora", steps=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_model_is_restored_when_training_stops(small, make_task, short_recipe, trace, name):
    parts = (small.unet, *(e.module for e in small.encoders), small.vae)
    before = [trace(part) for part in parts]
    events = train(make_task(short_recipe(name, gradient_checkpointing=True)))
    next(event for event in events if event.stage == TRAINING)
    assert [trace(part) for part in parts] != before
    events.close()
    assert [trace(part) for part in parts] == before
    assert not small.unet.is_gradient_checkpointing


def test_gradient_checkpointing_gives_the_same_result(run, short_recipe, same_concept):
    (losses, concept), (checkpointed_losses, checkpointed) = (
        run(short_recipe("ed-lora", steps=1, prior_loss_weight=1.0, num_class_images=1, gradient_checkpointing=on))
        for on in (False, True)
    )
    assert losses == checkpointed_losses and same_concept(concept, checkpointed)


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
def test_resumed_run_continues_with_the_same_losses(
    run, make_task, short_recipe, same_concept, tmp_path, name, changes
):
    recipe, checkpoint = short_recipe(name, **changes), tmp_path / "work" / "checkpoint.safetensors"
    losses, concept = run(recipe)
    assert train_and_stop(make_task(recipe), checkpoint, 1) == losses[:1]
    rest, resumed = run(recipe, checkpoint, resume=True)
    assert rest == losses[1:] and same_concept(resumed, concept)


def test_resumed_run_may_have_more_steps_but_not_fewer_than_it_has_taken(run, make_task, short_recipe, checkpoint):
    assert len(train_and_stop(make_task(short_recipe("textual-inversion")), checkpoint, 2)) == 2
    with pytest.raises(TrainError, match=r"checkpoint.safetensors: has taken 2 steps, but steps is 1; want at least 2"):
        run(short_recipe("textual-inversion", steps=1), checkpoint, resume=True)
    losses, _ = run(short_recipe("textual-inversion", steps=5), checkpoint, resume=True)
    assert len(losses) == 3


def test_resuming_a_finished_run_gives_its_concept(run, short_recipe, same_concept, checkpoint):
    recipe = short_recipe("textual-inversion")
    _, concept = run(recipe, checkpoint)
    rest, resumed = run(recipe, checkpoint, resume=True)
    assert rest == [] and same_concept(resumed, concept)


def test_seconds_and_steps_include_the_time_before_resumption(make_task, short_recipe, checkpoint):
    task = make_task(short_recipe("textual-inversion"))
    train_and_stop(task, checkpoint, 1)
    seconds = float(load_checkpoint(checkpoint)[1]["seconds"])
    first, *_, result = train(task, checkpoint, resume=True)
    assert first.step == 2 and first.seconds > seconds > 0
    assert result.card["seconds"] >= round(seconds, 1)


def test_run_without_resume_ignores_the_checkpoint(run, make_task, short_recipe, checkpoint):
    recipe = short_recipe("textual-inversion")
    first = train_and_stop(make_task(recipe), checkpoint, 1)
    losses, _ = run(recipe, checkpoint)
    assert len(losses) == 3 and losses[:1] == first


def _train_to_the_end(task, checkpoint):
    for _ in train(task, checkpoint, save_every_s=0):
        pass


@can_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_killed_run_resumes_from_its_checkpoint(run, make_task, short_recipe, same_concept, checkpoint):
    recipe = short_recipe("textual-inversion", steps=12)
    child = multiprocessing.get_context("fork").Process(target=_train_to_the_end, args=(make_task(recipe), checkpoint))
    child.start()
    until = time.monotonic() + 60
    while not (checkpoint.exists() and int(load_checkpoint(checkpoint)[1]["step"]) >= 2) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    step = int(load_checkpoint(checkpoint)[1]["step"])
    assert 2 <= step < recipe.steps
    rest, resumed = run(recipe, checkpoint, resume=True)
    losses, concept = run(recipe)
    assert rest == losses[step:] and same_concept(resumed, concept)


def test_interrupt_between_or_within_steps_saves_the_last_step(run, make_task, short_recipe, checkpoint, monkeypatch):
    recipe = short_recipe("textual-inversion")
    events = train(make_task(recipe), checkpoint)
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)
    assert load_checkpoint(checkpoint)[1]["step"] == "1"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        events = train(make_task(recipe), checkpoint, resume=True)
        next(events)
        patch.setattr(torch.nn.utils, "clip_grad_norm_", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(events)
    assert load_checkpoint(checkpoint)[1]["step"] == "2"
    rest, _ = run(recipe, checkpoint, resume=True)
    assert rest == run(recipe)[0][2:]


def test_interrupted_optimizer_step_is_not_saved(make_task, short_recipe, checkpoint, monkeypatch):
    real = torch.optim.AdamW.step
    events = train(make_task(short_recipe("textual-inversion")), checkpoint, save_every_s=0)
    next(events)

    def interrupt(optimizer):
        real(optimizer)
        raise KeyboardInterrupt

    next(events)
    saved = checkpoint.read_bytes()
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert checkpoint.read_bytes() == saved


def test_class_images_are_cached_next_to_the_checkpoint(make_task, short_recipe, checkpoint, monkeypatch):
    task = make_task(short_recipe("dreambooth", num_class_images=2))
    losses = train_and_stop(task, checkpoint, 1)
    assert file_names(checkpoint.parent) == ["checkpoint.prior", "checkpoint.safetensors"]
    monkeypatch.setattr("costars.train.data.class_images.sample_latent", None)
    assert train_and_stop(task, checkpoint, 1) == losses


@pytest.fixture
def with_class_images():
    """A subject with class images, the first square and the second tall."""

    def add(subject, *colours):
        sizes = ((64, 64), (32, 128))
        examples = [Example(Image.new("RGB", size, c), f"a {c} woman") for size, c in zip(sizes, colours, strict=False)]
        return replace(subject, class_examples=examples)

    return add


@pytest.mark.parametrize("name", ["dreambooth", "custom-diffusion", "lora"])
def test_given_class_images_are_used_instead_of_generated_ones(
    make_task, make_subject, short_recipe, with_class_images, checkpoint, monkeypatch, name
):
    recipe = short_recipe(name, prior_loss_weight=1.0)
    monkeypatch.setattr("costars.train.data.class_images.sample_latent", None)

    def task_with(*colours):
        return make_task(recipe, [with_class_images(make_subject(recipe), *colours)])

    def losses(*colours, **options):
        *steps, result = train(task_with(*colours), **options)
        assert all(step.stage == TRAINING for step in steps) and result.card["class_images"] == len(colours)
        return [step.loss for step in steps]

    expected = losses("blue", "white")
    assert len(expected) == 3 and all(0 < loss < 10 for loss in expected)
    assert losses("blue", "white") == expected != losses("blue", "black")
    assert train_and_stop(task_with("blue", "white"), checkpoint, 1) == expected[:1]
    assert file_names(checkpoint.parent) == ["checkpoint.safetensors"]
    for colours in (("blue", "black"), ("blue",)):
        with pytest.raises(TrainError, match="images, captions or concepts have changed since the start"):
            losses(*colours, checkpoint=checkpoint, resume=True)
    assert losses("blue", "white", checkpoint=checkpoint, resume=True) == expected[1:]


def test_errors_are_reported_before_class_images_are_generated(make_task, make_subject, short_recipe, monkeypatch):
    recipe = short_recipe("custom-diffusion")
    monkeypatch.setattr("costars.train.data.class_images.sample_latent", None)
    with pytest.raises(TrainError, match="class 'zxqvrobot': the tokenizer splits it into"):
        next(train(make_task(recipe, [make_subject(recipe, class_name="zxqvrobot")])))


def test_subject_without_trigger_in_its_captions_is_rejected_early(make_task, make_subject, short_recipe, checkpoint):
    recipe = short_recipe("lora")
    subject = make_subject(recipe)
    examples = [replace(e, caption="a miami woman") for e in subject.examples]
    with pytest.raises(TrainError, match=r"the caption of red\.png, 'a miami woman', lacks the trigger 'mia'"):
        next(train(make_task(recipe, [replace(subject, examples=examples)]), checkpoint))
    assert file_names(checkpoint.parent) == []


def test_new_words_are_case_sensitive_and_existing_words_are_not(make_task, make_subject, short_recipe):
    """Text encoders do not distinguish ANA from ana, but learned words are matched letter by letter."""

    def train_with_upper_case_trigger(recipe):
        subject = make_subject(recipe)
        trigger = subject.trigger
        examples = [replace(e, caption=e.caption.replace(trigger, trigger.upper())) for e in subject.examples]
        return list(train(make_task(recipe, [replace(subject, examples=examples)])))

    assert len(train_with_upper_case_trigger(short_recipe("lora", steps=1))) == 2
    with pytest.raises(TrainError, match="'photo of a <MIA> woman', lacks the trigger '<mia>'"):
        train_with_upper_case_trigger(short_recipe("textual-inversion", steps=1))


@pytest.mark.parametrize(("name", "changes"), [("dreambooth", {}), ("lora", {"text_encoder": "none"})])
def test_frozen_encoders_run_once_per_image_and_caption(small, make_task, make_subject, short_recipe, name, changes):
    recipe = short_recipe(name, **changes)
    subject = make_subject(recipe)
    events = train(make_task(recipe, [replace(subject, examples=subject.examples[:1])]))
    next(event for event in events if event.stage == TRAINING)

    def fail(*_):
        raise AssertionError("encoded again")

    with ExitStack() as stack:
        for module in (small.vae.encoder, *(e.module for e in small.encoders)):
            stack.enter_context(module.register_forward_pre_hook(fail))
        *rest, result = events
    assert [event.step for event in rest] == [2, 3] and isinstance(result, TrainingResult)


def test_jointly_trained_concepts_have_words_of_their_own(make_task, make_subject, short_recipe):
    recipe = short_recipe("custom-diffusion")
    *_, result = train(make_task(recipe, [make_subject(recipe), make_subject(recipe, "rex", "dog")]))
    assert [c.trigger for c in result.concepts] == ["<mia>", "<rex>"]
    assert [list(c.tokens) for c in result.concepts] == [["<mia>"], ["<rex>"]]
    assert result.card["pictures"] == 4


def _train_in_process(rank, port, task, checkpoint, queue):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    PartialState._reset_state()
    *steps, result = train(task, checkpoint, save_every_s=0)
    embeddings = [{part: t.tolist() for part, t in c.tokens[c.trigger].items()} for c in result.concepts]
    queue.put((rank, [step.loss for step in steps if step.stage == TRAINING], embeddings))
    queue.close()
    queue.join_thread()
    torch.distributed.destroy_process_group()


@can_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_average_their_gradients(small, make_task, make_subject, short_recipe, checkpoint, monkeypatch):
    """Two processes equal one process that accumulates both batches; a batch of one image has one concept's word."""
    # Adam divides by the size of the gradients and clipping by their norm: a sum would look like a mean.
    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda groups, recipe: torch.optim.SGD(groups))
    recipe = short_recipe("custom-diffusion", embedding_lr=10.0, unet_lr=1e-2, max_grad_norm=0.0, batch_size=1)
    task = make_task(recipe, [make_subject(recipe), make_subject(recipe, "rex", "dog")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_train_in_process, args=(rank, port, task, checkpoint, queue)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    results = sorted((queue.get(timeout=100) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    (_, first, embeddings), (_, second, others) = results
    assert embeddings == others and first != second
    *steps, result = train(replace(task, recipe=replace(recipe, gradient_accumulation_steps=2)))
    losses = [step.loss for step in steps if step.stage == TRAINING]
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(losses, rel=1e-3)
    for concept, vectors in zip(result.concepts, embeddings, strict=True):
        for encoder in small.encoders:
            table, word = encoder.module.get_input_embeddings().weight, concept.tokens[concept.trigger][encoder.name]
            change = (word - table[encoder.tokenizer(concept.class_name).input_ids[1]]).abs().max()
            assert (torch.tensor(vectors[encoder.name]) - word).abs().max() < 0.02 * change
    assert file_names(checkpoint.parent) == ["checkpoint.prior", "checkpoint.safetensors"]
