"""claims em: what is learned from, learned once, drawn once, and scored in one table."""

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
from costars.train.task import TrainingTask
from costars.train.recipes import BUILTIN, RECIPES, Em
from costars.train.run import Run
from costars_world.benchmarks import em
from costars_world.benchmarks.learned import drawing_of


def hasty(*args):
    """A drawing of four steps."""
    wanted = drawing_of(*args)
    return replace(wanted, scene=wanted.scene.model_copy(update={"steps": 4}))


@pytest.mark.parametrize("number", range(len(em.SETS)))
def test_a_set_shows_all_of_it_in_every_picture(number):
    subjects = em.lessons(number)
    names = em.SETS[number].split()
    assert [t.class_name for t in subjects] == names
    pictures = collect_group_images(subjects)
    assert len(pictures) == em.TOGETHER
    for picture in pictures:
        assert set(picture.given_masks) == set(names)
        assert np.sum(list(picture.given_masks.values()), axis=0).max() == 1  # true masks share no pixel
        assert min(mask.mean() for mask in picture.given_masks.values()) > 0.01


def test_the_ways_are_those_of_the_recipe():
    assert em.MASKS == ("learned", "frozen", "given")


def test_a_set_is_learned_drawn_and_scored_once(tmp_path, monkeypatch, capsys):
    known = RECIPES["em"][BUILTIN]
    estep = replace(Em().estep, timesteps=2, crf_size_px=16)
    brief = replace(
        known,
        steps=2,
        batch_size=1,
        embedding_only_steps=1,
        em=replace(known.em, refresh_every_steps=1, rows_per_call=2, estep=estep),
    )
    monkeypatch.setattr(em, "RECIPES", {"em": {BUILTIN: brief}})
    monkeypatch.setattr(em, "PLACES", {"park": em.PLACES["park"]})
    monkeypatch.setattr(em, "drawing_of", hasty)
    monkeypatch.setattr("costars_world.benchmarks.score.OTHERS", 4)
    command = ["--out", str(tmp_path), "--set", "1", "--seeds", "2"]
    em.main(command)
    rows = json.loads((tmp_path / "em.json").read_text())
    assert [row["masks"] for row in rows] == list(em.MASKS) and {row["of"] for row in rows} == {4}
    assert rows[2]["last masks"] == 1.0 and rows[1]["first masks"] == rows[1]["last masks"] < 1
    assert all(row["diversity"] > 0 for row in rows)
    assert "| man+dog | learned |" in capsys.readouterr().out
    with Image.open(tmp_path / "em-1.png") as sheet:
        assert sheet.height > 4 * 128
    monkeypatch.setattr(em, "teach", None)
    monkeypatch.setattr("costars.studio.Studio.render", None)
    em.main(command)
    assert json.loads((tmp_path / "em.json").read_text()) == rows


def test_what_was_stopped_is_gone_on_with_and_its_story_is_whole(tmp_path, monkeypatch):
    known, real = RECIPES["em"][BUILTIN], Run.take_step
    estep = replace(known.em.estep, timesteps=2, crf_size_px=16)
    brief = replace(
        known,
        steps=3,
        batch_size=1,
        embedding_only_steps=1,
        em=replace(known.em, refresh_every_steps=2, rows_per_call=2, estep=estep),
    )
    on = SimpleNamespace(studio=open_studio("cpu", "float32"))

    def stopped(run):
        if run.step == 1:
            raise KeyboardInterrupt
        real(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "take_step", stopped)
        em.learned(on, 1, brief, tmp_path)
    (first,) = json.loads((tmp_path / "report.json").read_text())["masks"]
    rows = em.learned(on, 1, brief, tmp_path)
    assert rows[0] == first and [row["step"] for row in rows] == [0, 2]
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_pictures_alike_are_close_and_others_far(tmp_path):
    segmenter = load_segmenter(Settings().builtin / "segmenter" / "model.safetensors", torch.device("cpu"))
    for i, picture in enumerate(em.together(0)[:2]):
        picture.image.save(tmp_path / f"{i}.png")
    one, other = (tmp_path / f"{i}.png" for i in range(2))
    assert em.diversity(segmenter, [one, one]) == 0 < em.diversity(segmenter, [one, other])


def test_first_masks_are_the_figures_hats_and_tails_too(monkeypatch):
    """Of woman, cat and robot 0.82 with all pictures and timesteps, of the words' attention alone 0.66."""
    each, recipe = [replace(t, examples=t.examples[:2]) for t in em.lessons(3)], RECIPES["em"][BUILTIN]
    alone = []

    def both(evidence, image, how, before):
        alone.append(estimate_masks(Evidence(evidence.maps), image, how, before))
        return estimate_masks(evidence, image, how, before)

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", both)
    brief = replace(recipe, batch_size=1, em=replace(recipe.em, estep=replace(recipe.em.estep, timesteps=20)))
    steps = train(TrainingTask(open_studio("cpu").model(BUILTIN), each, brief))
    masks = next(steps).masks
    steps.close()
    truth = {(i, t.name): example.mask for t in each for i, example in enumerate(t.examples)}
    found = mean_iou([masks[key] for key in truth], [*truth.values()])
    assert found > 0.75 and found > 0.05 + mean_iou([alone[i][name] for i, name in truth], [*truth.values()])
