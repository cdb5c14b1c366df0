"""python -m costars_world.training, every part, on twenty pictures and two steps each."""

import json
import os
from dataclasses import replace

import pytest
import torch

from costars.builtin.segmenter import load_segmenter
from costars.concepts.load import load_concept
from costars.model.hub import Source
from costars.model.load import load_model
from costars_world.training import base, concepts, judge, parts, samples, segmenter, vae
from costars_world.training import dataset as corpus
from costars_world.training.__main__ import main

CPU = torch.device("cpu")


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(corpus, "CHUNK", 20)
    monkeypatch.setattr(judge, "CHUNK", 20)
    monkeypatch.setattr(judge, "OTHERS", 2)
    for name, value in (("PICTURES", 20), ("FOR_SEGMENTER", 20), ("FOR_JUDGE", 20), ("HELD_OUT", 5)):
        monkeypatch.setattr(parts, name, value)
    for module, name in (
        (vae, "RECIPE"),
        (vae, "WHOLE_RECIPE"),
        (base, "RECIPE"),
        (segmenter, "RECIPE"),
        (judge, "RECIPE"),
    ):
        monkeypatch.setattr(module, name, replace(getattr(module, name), steps=2, batch=2))
    monkeypatch.setattr(concepts, "RECIPE", replace(concepts.RECIPE, steps=2, batch_size=2))
    monkeypatch.setattr(concepts, "PACK", {"rex": concepts.PACK["rex"]})
    monkeypatch.setattr(samples, "PROMPTS", samples.PROMPTS[:1])
    monkeypatch.setattr(samples, "STEPS", 2)


def folders(path):
    weights = str(path / "weights")
    return ["--work", str(path / "work"), "--weights", weights, "--judge-weights", f"{weights}/judge"]


def test_everything_is_trained_from_the_renderer_alone_and_in_pieces_as_at_once(brief, tmp_path, capsys):
    main(["all", *folders(tmp_path / "once")])
    main(["all", "--minutes", "0", *folders(tmp_path / "pieces")])
    assert "vae: 1 of 2 steps; go on with --resume" in capsys.readouterr().out
    for _ in range(9):
        main(["all", "--minutes", "0", "--resume", *folders(tmp_path / "pieces")])
        if "go on with" not in capsys.readouterr().out:
            break
    once, pieces = tmp_path / "once" / "weights", tmp_path / "pieces" / "weights"
    for path in sorted(once.rglob("*.safetensors")):
        if "concepts" not in path.parts:  # their files note the seconds they took
            assert path.read_bytes() == (pieces / path.relative_to(once)).read_bytes(), path
    model = load_model(Source("small", pieces / "model"), CPU, torch.float32, 0, "world")
    assert samples.sample(
        model,
        ["a dog in a park"],
    )[0].size == (128, 128)
    assert load_concept(pieces / "concepts" / "rex.safetensors", "rex", "rex").class_name == "dog"
    load_segmenter(pieces / "segmenter" / "model.safetensors", CPU)
    for part in ("model", "model/vae", "segmenter", "judge"):
        card = json.loads((pieces / part / "card.json").read_text())
        assert (card["steps"], card["device"]) == (2, "cpu")
    sheets = {path.stem.rsplit("-", 1)[0] for path in (tmp_path / "pieces" / "work").glob("*.png")}
    assert sheets == {"vae", "vae-whole", "base", "segmenter", "judge", "concepts"}


def test_without_a_gpu_cuda_is_refused_in_one_line(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit) as stop:
        main(["vae", "--device", "cuda", *folders(tmp_path)])
    assert stop.value.code == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err
