"""python -m costars_world.training with every part, on twenty pictures and two steps each."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch

from costars.builtin.segmenter import load_segmenter
from costars.concepts.load import load_concept
from costars.model.hub import Source
from costars.model.load import load_model
from costars_world.training import base, concepts, dataset, judge, parts, samples, segmenter, vae
from costars_world.training.__main__ import main

CPU = torch.device("cpu")


@pytest.fixture
def short_training(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(dataset, "CHUNK_SIZE", 20)
    monkeypatch.setattr(judge, "CHUNK_SIZE", 20)
    monkeypatch.setattr(judge, "NUM_DISTRACTORS", 2)
    for name, value in (
        ("NUM_PICTURES", 20),
        ("NUM_SEGMENTER_PICTURES", 20),
        ("NUM_JUDGE_PICTURES", 20),
        ("NUM_HELD_OUT", 5),
    ):
        monkeypatch.setattr(parts, name, value)
    for module, name in (
        (vae, "RECIPE"),
        (vae, "WHOLE_RECIPE"),
        (base, "RECIPE"),
        (segmenter, "RECIPE"),
        (judge, "RECIPE"),
    ):
        monkeypatch.setattr(module, name, replace(getattr(module, name), steps=2, batch_size=2))
    monkeypatch.setattr(concepts, "RECIPE", replace(concepts.RECIPE, steps=2, batch_size=2))
    monkeypatch.setattr(concepts, "PACK", {"rex": concepts.PACK["rex"]})
    monkeypatch.setattr(samples, "PROMPTS", samples.PROMPTS[:1])
    monkeypatch.setattr(samples, "STEPS", 2)
    monkeypatch.setattr(segmenter, "NUM_EMPTY", 10)
    small_sheets = {
        "draw_reconstructions": {"count": 1},
        "draw_segmentations": {"count": 1},
        "draw_nearest_figures": {"queries": 1, "candidates": 4},
    }
    for name, sizes in small_sheets.items():
        monkeypatch.setattr(samples, name, partial(getattr(samples, name), **sizes))


def folder_options(path):
    weights = str(path / "weights")
    return ["--work", str(path / "work"), "--weights", weights, "--judge-weights", f"{weights}/judge"]


def test_interrupted_training_of_all_parts_equals_an_uninterrupted_one(short_training, tmp_path, capsys):
    main(["all", *folder_options(tmp_path / "once")])
    main(["all", "--minutes", "0", *folder_options(tmp_path / "pieces")])
    assert "vae: 1 of 2 steps done; continue with --resume" in capsys.readouterr().out
    for _ in range(9):
        main(["all", "--minutes", "0", "--resume", *folder_options(tmp_path / "pieces")])
        if "continue with" not in capsys.readouterr().out:
            break
    once, pieces = tmp_path / "once" / "weights", tmp_path / "pieces" / "weights"
    for path in sorted(once.rglob("*.safetensors")):
        if "concepts" not in path.parts:  # their metadata contain the seconds
            assert path.read_bytes() == (pieces / path.relative_to(once)).read_bytes(), path
    model = load_model(Source("small", pieces / "model"), CPU, torch.float32, 0, "world")
    assert samples.sample_images(model, ["a dog in a park"])[0].size == (128, 128)
    assert load_concept(pieces / "concepts" / "rex.safetensors", "rex", "rex").class_name == "dog"
    load_segmenter(pieces / "segmenter" / "model.safetensors", CPU)
    for part in ("model", "model/vae", "segmenter", "judge"):
        card = json.loads((pieces / part / "card.json").read_text())
        assert (card["steps"], card["device"]) == (2, "cpu")
    sheets = {path.stem.rsplit("-", 1)[0] for path in (tmp_path / "pieces" / "work").glob("*.png")}
    assert sheets == {"vae", "vae-whole", "base", "segmenter", "judge", "concepts"}


def test_cuda_without_a_gpu_is_rejected(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit) as exit_info:
        main(["vae", "--device", "cuda", *folder_options(tmp_path)])
    assert exit_info.value.code == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err
