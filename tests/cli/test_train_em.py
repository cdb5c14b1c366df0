"""costars train em: several concepts in the same images, and the report of their masks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from costars.concepts.load import load_concept
from costars.train.em import report as em_report
from costars.train.run import TrainingRun

pytestmark = pytest.mark.usefixtures("images")

SHORT = ("--set", "steps=2", "--set", "rank=2", "--set", "alpha=2", "--set", "gradient_checkpointing=false")
SHORT = (*SHORT, "--set", "gradient_accumulation_steps=1", "--set", "max_aspect_ratio=1")
EM = (
    "train",
    "em",
    "--images",
    "mia",
    "--model",
    "tiny-sdxl",
    "--concept",
    "ana=woman",
    "--concept",
    "rex=dog",
    *SHORT,
)
FEW = ("--set", "em.estep.timesteps=2", "--set", "em.estep.crf_size_px=16", "--set", "em.attention_cell_px=[16,32]")
FEW = (*FEW, "--set", "embedding_only_steps=1")


def test_em_trains_several_concepts_and_writes_a_report(cli, library, images):
    for colour in ("red", "green"):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 32, 64))
        mask.save(images / f"{colour}.ana.mask.png")
    code, out, err = cli(*EM, *FEW)
    assert code == 0, err
    assert out.splitlines() == [str(library / f"{name}.safetensors") for name in ("ana", "rex")]
    assert list(load_concept(library / "rex.safetensors", "", "").tokens) == ["<rex>"]
    work = library.parent / "training" / "ana-rex"
    left = sorted(path.name for path in work.iterdir())
    assert left == ["masks", "masks.png", "report.json", "report.png", "sheet-000002.png"]
    files = {f"{picture}.{name}.png" for picture in ("red", "green") for name in ("ana", "rex")}
    assert {path.name for path in (work / "masks").iterdir()} == files
    (row,) = json.loads((work / "report.json").read_text())["masks"]
    assert row["step"] == 0 and list(row["iou"]) == ["ana"] and 0 <= row["iou"]["ana"] <= 1


def test_em_trains_a_background(cli, library, new_concepts):
    """The class word of a park is several tokens of this model, so that a word of it starts at random."""
    code, _, err = cli(*EM, *FEW, "--background", "meadow=park", "--set", "embedding_init=random")
    assert code == 0, err
    assert new_concepts() == ["ana.safetensors", "meadow.safetensors", "rex.safetensors"]
    meadow = load_concept(library / "meadow.safetensors", "", "")
    assert (list(meadow.tokens), meadow.class_name) == (["<meadow>"], "park")
    masks = library.parent / "training" / "ana-rex-meadow" / "masks"
    for picture in ("red", "green"):
        each = [np.asarray(Image.open(masks / f"{picture}.{name}.png")) for name in ("ana", "rex", "meadow")]
        assert np.array_equal(np.sum(each, axis=0), np.full((64, 64), 255))
    Image.new("L", (64, 64), 255).save("here.png")
    cast = {"ana": {"concept": "ana", "where": "here.png"}}
    scene = {"prompt": "{ana} in a <meadow> park", "cast": cast, "style": {"concept": "meadow"}}
    Path("scene.yaml").write_text(json.dumps(scene | {"model": "tiny-sdxl", "steps": 1, "segmenter": "attention"}))
    code, _, err = cli("plan", "scene.yaml", "--out", "drawn")
    assert code == 0, err
    Path("scene.yaml").write_text(Path("scene.yaml").read_text().replace("in a <meadow> park", "in a park"))
    code, _, err = cli("plan", "scene.yaml", "--out", "other")
    assert code == 2 and "style: 'meadow' has the learned word '<meadow>', which" in err, err


def test_background_needs_em_with_concepts(expect_error):
    expect_error(
        "train",
        "em",
        "--images",
        "mia",
        "--background",
        "m=park",
        message="--background needs the em recipe with --concept NAME=CLASS",
    )
    expect_error(*EM, "--name", "q", message="em: name is set beside concepts; set it in each concept instead")
    expect_error(*EM, "--background", "m", message="--background 'm': want NAME=CLASS, e.g. meadow=park")
    words = ("train", "lora", *EM[2:], "--background", "m=park")
    expect_error(*words, message="m: lora does not support background; use em, or leave it out")


def test_em_report_compares_a_single_given_mask(cli, library, images):
    Image.new("L", (64, 64), 255).save(images / "red.rex.mask.png")
    code, _, err = cli(*EM, *FEW)
    assert code == 0, err
    work = library.parent / "training" / "ana-rex"
    (row,) = json.loads((work / "report.json").read_text())["masks"]
    found = np.asarray(Image.open(work / "masks" / "red.rex.png")) > 127
    assert row["iou"] == {"rex": pytest.approx(found.mean(), abs=1e-3)}
    assert err.splitlines()[-1].startswith("rex: ") or f"masks and report: {work}" in err


def test_missing_matplotlib_does_not_end_training(cli, library, images, monkeypatch, new_concepts):
    Image.new("L", (64, 64), 255).save(images / "red.ana.mask.png")
    Image.new("L", (64, 64), 255).save(images / "green.ana.mask.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = cli(*EM, *FEW)
    assert code == 0 and "report.png: matplotlib is not installed" in err, err
    assert new_concepts() == ["ana.safetensors", "rex.safetensors"]
    assert not (library.parent / "training" / "ana-rex" / "checkpoint.safetensors").exists()


@pytest.fixture
def rows(library, images):
    """A function that reads the rows of the report; the images have masks of ana to compare with."""
    for colour in ("red", "green"):
        Image.new("L", (64, 64), 255).save(images / f"{colour}.ana.mask.png")
    report = library.parent / "training" / "ana-rex" / "report.json"
    return lambda: json.loads(report.read_text())["masks"]


def stop():
    raise KeyboardInterrupt


def test_report_of_a_resumed_run_includes_earlier_steps(cli, rows, monkeypatch):
    """Whether the run was stopped between two refreshes or right before one."""
    words, real = (*EM, *FEW, "--set", "steps=3", "--set", "em.refresh_every_steps=2"), TrainingRun.take_step
    assert cli(*words, "--work", "whole")[0] == 0
    unbroken = json.loads(Path("whole/report.json").read_text())["masks"]
    assert [row["step"] for row in unbroken] == [0, 2]
    for after in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "take_step", lambda run: real(run) if run.step < after else stop())  # noqa: B023
            assert cli(*words, "--replace")[0] == 130
        assert rows() == unbroken[:1]
        code, _, err = cli(*words, "--replace", "--resume")
        assert code == 0, err
        assert rows() == unbroken


def test_unwritable_report_does_not_end_training(cli, library, monkeypatch, new_concepts, full_disk):
    monkeypatch.setattr(em_report, "make_grid", full_disk)
    code, _, err = cli(*EM, *FEW)
    assert code == 0 and "ana-rex: cannot be written (No space left on device)" in err, err
    assert new_concepts() == ["ana.safetensors", "rex.safetensors"]


def test_em_trains_the_full_unet(cli, library):
    code, _, err = cli(
        *EM,
        *FEW,
        "--set",
        "embedding_only_steps=0",
        "--set",
        "steps=1",
        "--set",
        "unet=full",
        "--set",
        "text_encoder=none",
    )
    assert code == 0, err
    concept = load_concept(library / "rex.safetensors", "", "")
    assert list(concept.tokens) == ["<rex>"] and not concept.adapter and "unet.conv_in" in concept.weights


def test_concept_in_no_caption_is_rejected(expect_error, images):
    for colour in ("red", "green"):
        (images / f"{colour}.txt").write_text("{ana}\n")
    expect_error(*EM, *FEW, message="rex: no caption contains {rex}; add it to a caption")
    expect_error("train", "em", "--images", "mia", "--concept", "ana", message="--concept 'ana': want NAME=CLASS")
