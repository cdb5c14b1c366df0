"""The EM objective: when masks are estimated, what is drawn of an image, and training with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.train.em.estep_masks import estimate_masks
from costars.train.em.objective import EmObjective, parse_mask_state
from costars.train.loop import TRAINING, train
from costars.train.results import TrainingResult
from costars.train.task import TrainingTask


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws_of(objective: EmObjective, count: int = 60) -> set:
    return {objective._draw(seeded(seed)) for seed in range(count)}


def widen(example: Example) -> Example:
    """The example as 200 x 50 px, of which the model's buckets keep 150 x 50 in the middle."""
    mask = np.zeros((50, 200), dtype=np.float32)
    mask[:, :100], mask[:, 100:] = (0, 0) if example.mask is None else (example.mask[0, 0], example.mask[0, -1])
    return replace(example, image=example.image.resize((200, 50)), mask=mask)


def wide_pair(data) -> list:
    return [replace(subject, examples=[widen(e) for e in subject.examples]) for subject in data.pair()]


def test_every_subset_of_an_image_is_drawn(open_objective):
    objective = open_objective("given")
    objective.prepare_step(0)
    assert draws_of(objective) == {(0, ("ana",)), (0, ("rex",)), (0, ("ana", "rex")), (1, ("ana",))}


def test_concepts_with_empty_masks_are_not_drawn(open_objective, data, monkeypatch):
    objective = open_objective("learned")
    masks = {(0, "ana"): data.half_mask(True) * 0, (0, "rex"): data.half_mask(False), (1, "ana"): data.half_mask(True)}
    monkeypatch.setattr(EmObjective, "_run_estep", lambda self, step: masks)
    objective.prepare_step(0)
    assert draws_of(objective) == {(0, ("rex",)), (1, ("ana",))}


def test_given_masks_are_used_unchanged(open_objective, data):
    objective = open_objective("given")
    objective.prepare_step(0)
    assert np.array_equal(objective.masks[0, "ana"], data.half_mask(left=True))
    assert set(objective.masks) == {(0, "ana"), (0, "rex"), (1, "ana")}
    assert objective.loss(seeded(0)).isfinite()


def test_missing_given_masks_are_rejected(open_objective, data):
    with pytest.raises(TrainError, match=r"em.masks=given: one.png has no mask of ana, rex; add IMAGE.NAME.mask.png"):
        open_objective("given", data.pair(masked=False))


@pytest.mark.parametrize(("masks", "expected"), [("learned", [0, 2, 4]), ("frozen", [0])])
def test_estep_runs_when_it_is_due(open_objective, data, masks, expected, monkeypatch):
    objective, steps = open_objective(masks), []
    monkeypatch.setattr(EmObjective, "_run_estep", lambda self, step: {(0, str(step)): data.half_mask(left=True)})
    for step in range(6):
        objective.prepare_step(step)
        steps += [int(name) for _, name in objective.masks if int(name) not in steps]
    assert steps == expected


def test_masks_are_frozen_after_freeze_after_steps(open_objective, evidences):
    objective = open_objective("learned", em={"freeze_after_steps": 2})
    for step in range(7):
        objective.prepare_step(step)
    assert len(evidences) == 2 * len((0, 2))


def test_concept_without_a_mask_in_any_image_is_rejected(open_objective, data, monkeypatch):
    objective = open_objective("learned")
    masks = {(i, name): data.half_mask(True) * (name == "ana") for i, name in ((0, "ana"), (0, "rex"), (1, "ana"))}
    monkeypatch.setattr(EmObjective, "_run_estep", lambda self, step: masks)
    with pytest.raises(TrainError, match=r"rex: the E-step found no mask for it in any image; draw IMAGE\.rex\.mask"):
        objective.prepare_step(0)


def test_background_that_is_covered_everywhere_is_rejected(open_objective, data):
    meadow, ana, rex = data.pair_in_meadow()
    full = [replace(example, mask=np.ones((64, 64), dtype=np.float32)) for example in ana.examples]
    objective = open_objective("given", (meadow, replace(ana, examples=full), rex), embedding_init="random")
    with pytest.raises(TrainError, match=r"m: the other masks cover all of the background in all images"):
        objective.prepare_step(0)


def test_background_gets_the_pixels_that_other_masks_leave(open_objective, data, monkeypatch):
    collected = []

    def fake_masks(evidence, image, config, previous):
        collected.append((list(evidence.maps), list(evidence.errors)))
        return {name: data.half_mask(name == "ana") * (np.arange(64) < 48) for name in evidence.maps}

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", fake_masks)
    objective = open_objective("learned", data.pair_in_meadow(), embedding_init="random")
    objective.prepare_step(0)
    assert collected == [(["ana", "rex"], ["ana", "rex"]), (["ana"], [])]
    assert np.array_equal(objective.masks[0, "m"], np.ones((64, 64)) * (np.arange(64) >= 48))
    assert {(0, ("m",)), (0, ("ana", "rex", "m")), (0, ("rex", "m"))} < draws_of(objective)
    assert objective.loss(seeded(0)).isfinite()


@pytest.mark.parametrize("masks", ["learned", "given"])
def test_images_of_any_shape_are_trained_on(open_objective, data, masks, monkeypatch):
    """Masks have the original size; the part of an image that is cropped away is in no cropped mask."""
    square = Example(Image.new("RGB", (96, 96), "red"), None, np.ones((96, 96), dtype=np.float32), "3")
    monkeypatch.setattr(
        "costars.train.em.objective.estimate_masks",
        lambda evidence, image, *_: {name: np.ones(image.size[::-1], dtype=np.float32) for name in evidence.maps},
    )
    subjects = [*wide_pair(data), data.make_subject("bo", "man", [square])]
    objective = open_objective(masks, subjects, max_aspect_ratio=3.0)
    objective.prepare_step(0)
    assert {mask.shape for mask in objective.masks.values()} == {(50, 200), (96, 96)}
    assert [image.cropped.size for image in objective.images] == [(96, 32), (96, 32), (64, 64)]
    for (i, _), mask in objective.cropped_masks.items():
        assert mask.shape == objective.images[i].cropped.size[::-1]
    if masks == "given":
        assert objective.cropped_masks[0, "ana"].mean() == pytest.approx(0.5, abs=0.02)
    else:
        columns = objective.masks[0, "ana"].any(axis=0)
        assert not columns[:25].any() and not columns[175:].any() and columns[25:175].all()
    assert objective.loss(seeded(0)).isfinite()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_estep_of_oblong_images_uses_all_evidence(open_objective, data, gradient_checkpointing, monkeypatch):
    """Self-attention too, on the cells of 150 x 50 px; also where activations are recomputed."""
    collected = []

    def collect(evidence, *rest):
        collected.append(evidence)
        return estimate_masks(evidence, *rest) | {"ana": np.ones((32, 96), dtype=np.float32)}

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", collect)
    objective = open_objective(
        "learned", wide_pair(data), max_aspect_ratio=3.0, gradient_checkpointing=gradient_checkpointing
    )
    objective.em = replace(objective.em, estep=replace(objective.em.estep, max_mask_fraction=1.0))
    found = objective._run_estep(0)
    assert [evidence.self_attention.shape for evidence in collected] == [(12, 12)] * 2
    assert {mask.shape for mask in found.values()} == {(50, 200)}


def test_loss_weights_are_zero_outside_the_masks_of_the_drawn_concepts(open_objective, monkeypatch):
    objective = open_objective("given")
    objective.prepare_step(0)
    real_errors, real_draw, weights, draws = EmObjective._noise_errors, EmObjective._draw, [], []

    def noise_errors(self, latents, conditioning, generator, own):
        weights.append(own)
        return real_errors(self, latents, conditioning, generator, own)

    def draw(self, generator):
        draws.append(real_draw(self, generator))
        return draws[-1]

    monkeypatch.setattr(EmObjective, "_noise_errors", noise_errors)
    monkeypatch.setattr(EmObjective, "_draw", draw)
    objective.loss(seeded(0))
    (weights,) = weights  # all images have one shape
    for (_, names), own in zip(draws, weights, strict=True):
        left, right = own[0, :, :4], own[0, :, 4:]
        assert bool(left.any()) == ("ana" in names) and bool(right.any()) == ("rex" in names)


def test_state_is_parsed_back_to_the_same_masks(open_objective):
    objective = open_objective("given")
    objective.prepare_step(0)
    masks = parse_mask_state(objective.state())
    assert masks.keys() == objective.masks.keys()
    assert all(np.array_equal(mask, objective.masks[key]) for key, mask in masks.items())


def test_embeddings_train_before_the_lora_layers(small, data, recipe):
    embeddings = []
    for event in train(TrainingTask(small, data.pair(), recipe)):
        if isinstance(event, TrainingResult):
            concepts = event.concepts
        elif event.stage == TRAINING:
            embeddings.append({w: parts["text_encoder"].clone() for w, parts in event.learned.items()})
    assert [concept.name for concept in concepts] == ["ana", "rex"]
    assert [list(concept.tokens) for concept in concepts] == [["<ana>"], ["<rex>"]]
    assert not torch.equal(embeddings[0]["<ana>"], embeddings[1]["<ana>"])
    assert any(entry.up.any() for entry in concepts[0].adapter.values())
    *_, result = train(TrainingTask(small, data.pair(), replace(recipe, steps=2)))
    assert not any(entry.up.any() for entry in result.concepts[0].adapter.values())


def test_resume_continues_with_the_masks_of_the_checkpoint(small, data, recipe, tmp_path):
    task, checkpoint = TrainingTask(small, data.pair(masked=False), recipe), tmp_path / "checkpoint.safetensors"
    unbroken = [event.loss for event in train(task) if not isinstance(event, TrainingResult)]
    events = train(task, checkpoint)
    before = [next(events).loss for _ in range(3)]
    events.close()
    rest = [event.loss for event in train(task, checkpoint, resume=True) if not isinstance(event, TrainingResult)]
    assert before + rest == unbroken
