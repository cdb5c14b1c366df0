"""python -m costars_world.benchmarks.em: sets are trained, rendered and scored once."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from costars import open_studio
from costars.builtin.segmenter import load_segmenter
from costars.settings import Settings
from costars.train.em.estep_masks import Evidence, estimate_masks, mean_iou
from costars.train.em.group_images import collect_group_images
from costars.train.loop import train
from costars.train.recipe import EmConfig
from costars.train.recipes import BUILTIN, RECIPES
from costars.train.run import TrainingRun
from costars.train.task import TrainingTask
from costars_world.benchmarks import em
from costars_world.benchmarks.trained_concepts import make_concept_prompt


def make_short_prompt(*args):
    """A prompt with four steps."""
    prompt = make_concept_prompt(*args)
    return replace(prompt, scene=prompt.scene.model_copy(update={"steps": 4}))


@pytest.mark.parametrize("number", range(len(em.SETS)))
def test_every_picture_shows_the_whole_set(number):
    subjects = em.make_set_subjects(number)
    names = em.SETS[number].split()
    assert [s.class_name for s in subjects] == names
    pictures = collect_group_images(subjects)
    assert len(pictures) == em.IMAGES_PER_SET
    for picture in pictures:
        assert set(picture.given_masks) == set(names)
        assert np.sum(list(picture.given_masks.values()), axis=0).max() == 1  # true masks are disjoint
        assert min(mask.mean() for mask in picture.given_masks.values()) > 0.01


def test_kinds_of_masks_are_those_of_the_recipe():
    assert em.MASKS == ("learned", "frozen", "given")


def test_set_is_trained_and_scored_once(tmp_path, monkeypatch, capsys):
    recipe = RECIPES["em"][BUILTIN]
    estep = replace(EmConfig().estep, timesteps=2, crf_size_px=16)
    short = replace(
        recipe,
        steps=2,
        batch_size=1,
        embedding_only_steps=1,
        em=replace(recipe.em, refresh_every_steps=1, rows_per_call=2, estep=estep),
    )
    monkeypatch.setattr(em, "RECIPES", {"em": {BUILTIN: short}})
    monkeypatch.setattr(em, "PLACES", {"park": em.PLACES["park"]})
    monkeypatch.setattr(em, "make_concept_prompt", make_short_prompt)
    monkeypatch.setattr("costars_world.benchmarks.score.NUM_DISTRACTORS", 4)
    command = ["--out", str(tmp_path), "--set", "1", "--seeds", "2"]
    em.main(command)
    rows = json.loads((tmp_path / "em.json").read_text())["rows"]
    assert [row["masks"] for row in rows] == list(em.MASKS) and {row["of"] for row in rows} == {4}
    assert rows[2]["last masks"] == 1.0 and rows[1]["first masks"] == rows[1]["last masks"] < 1
    assert all(row["diversity"] > 0 for row in rows)
    assert "| man+dog | learned |" in capsys.readouterr().out
    with Image.open(tmp_path / "em-1.png") as sheet:
        assert sheet.height > 4 * 128
    monkeypatch.setattr(em, "train", None)
    monkeypatch.setattr("costars.studio.Studio.render", None)
    em.main(command)
    assert json.loads((tmp_path / "em.json").read_text())["rows"] == rows


def test_interrupted_set_continues_with_its_history(tmp_path, monkeypatch):
    recipe, real = RECIPES["em"][BUILTIN], TrainingRun.take_step
    estep = replace(recipe.em.estep, timesteps=2, crf_size_px=16)
    short = replace(
        recipe,
        steps=3,
        batch_size=1,
        embedding_only_steps=1,
        em=replace(recipe.em, refresh_every_steps=2, rows_per_call=2, estep=estep),
    )
    evaluator = SimpleNamespace(studio=open_studio("cpu", "float32"))

    def interrupted(run):
        if run.step == 1:
            raise KeyboardInterrupt
        real(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingRun, "take_step", interrupted)
        em.train_set(evaluator, 1, short, tmp_path)
    (first,) = json.loads((tmp_path / "report.json").read_text())["masks"]
    rows = em.train_set(evaluator, 1, short, tmp_path)
    assert rows[0] == first and [row["step"] for row in rows] == [0, 2]
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_diversity_is_zero_for_equal_images(tmp_path):
    segmenter = load_segmenter(Settings().builtin / "segmenter" / "model.safetensors", torch.device("cpu"))
    for i, picture in enumerate(em.draw_group_pictures(0)[:2]):
        picture.image.save(tmp_path / f"{i}.png")
    one, other = (tmp_path / f"{i}.png" for i in range(2))
    assert em.measure_diversity(segmenter, [one, one]) == 0 < em.measure_diversity(segmenter, [one, other])


def test_first_masks_are_better_than_attention_alone(monkeypatch):
    """Mean IoU on woman, cat and robot: 0.82 with all images and timesteps, 0.66 from attention alone."""
    subjects = [replace(s, examples=s.examples[:2]) for s in em.make_set_subjects(3)]
    recipe = RECIPES["em"][BUILTIN]
    from_attention = []

    def estimate_both(evidence, image, config, previous):
        from_attention.append(estimate_masks(Evidence(evidence.maps), image, config, previous))
        return estimate_masks(evidence, image, config, previous)

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", estimate_both)
    short = replace(
        recipe, batch_size=1, em=replace(recipe.em, estep=replace(recipe.em.estep, timesteps=20, crf_size_px=64))
    )
    steps = train(TrainingTask(model=open_studio("cpu").model(BUILTIN), subjects=subjects, recipe=short))
    masks = next(steps).masks
    steps.close()
    truth = {(i, s.name): example.mask for s in subjects for i, example in enumerate(s.examples)}
    found = mean_iou([masks[key] for key in truth], [*truth.values()])
    attention_only = mean_iou([from_attention[i][name] for i, name in truth], [*truth.values()])
    assert found > 0.75 and found > 0.05 + attention_only
