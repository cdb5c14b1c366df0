"""costars train: what is written, what is refused in one line before anything is taught, and how it goes on."""

import errno
import json
import os
import sys
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GenerationMixin

from costars.concepts.load import load_concept, read_card
from costars.train.checkpoint import load_checkpoint
from costars.train.data import captioning as captions
from costars.train.data import class_images as prior
from costars.train.em import report as em_report
from costars.train.loop import train
from costars.train.run import TrainingRun

LORA = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
SHORT = ("--set", "steps=2", "--set", "rank=2", "--set", "alpha=2", "--set", "gradient_checkpointing=false")
SHORT = (*SHORT, "--set", "gradient_accumulation_steps=1", "--set", "max_aspect_ratio=1")
WORD = ("train", "textual-inversion", *LORA[2:], *SHORT, "--set", "embedding_lr=0.01")


@pytest.fixture(autouse=True)
def pictures(folder, monkeypatch) -> Path:
    """Two pictures without a caption, beside the model."""
    monkeypatch.setattr(prior, "INFERENCE_STEPS", 2)
    home = folder / "mia"
    home.mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (64, 64), colour).save(home / f"{colour}.png")
    return home


@pytest.fixture
def work(library) -> Path:
    """Where a run keeps its checkpoint and its sheets."""
    return library.parent / "training" / "mia"


def made(library: Path) -> list[str]:
    return sorted(path.name for path in library.iterdir() if not path.name.startswith("char_"))


def test_trained_lora_is_listed_and_rendered(cli, library, work, write):
    code, out, err = cli(*LORA, *SHORT)
    target = library / "mia.safetensors"
    assert (code, out) == (0, f"{target}\n"), err
    assert err.splitlines()[-1].startswith("mia: ") and err.rstrip().endswith("MB, trigger 'mia'")
    assert made(library) == ["mia.safetensors"]
    assert [path.name for path in work.iterdir()] == ["sheet-000002.png"]
    with Image.open(work / "sheet-000002.png") as sheet:
        assert sheet.width > 2 * 64
    card = read_card(target)
    assert (card["recipe"]["steps"], card["recipe"]["rank"], card["pictures"]) == (2, 2, 2)
    listed = cli("concepts", "list")[1]
    assert ["mia", "woman"] in [line.split()[:2] for line in listed.splitlines()]
    write(b={"concept": "mia"})
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0, err


def test_yaml_file_gives_the_same_concept_as_options(cli, library, folder):
    assert cli(*WORD)[0] == 0
    spec = {"recipe": "textual-inversion", "model": "tiny-sdxl", "name": "bob", "class": "woman", "images": "mia"}
    settings = {
        "steps": 9,
        "rank": 2,
        "alpha": 2,
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": 1,
        "max_aspect_ratio": 1,
    }
    (folder / "bob.yaml").write_text(yaml.safe_dump(spec | {"settings": settings | {"embedding_lr": 0.01}}))
    code, out, err = cli("train", "bob.yaml", "--set", "steps=2", "--out", "made", "--sheet-every", "1")
    assert (code, out) == (0, "made/bob.safetensors\n"), err
    first, second = load_file(library / "mia.safetensors"), load_file("made/bob.safetensors")
    assert [tuple(t.shape) for t in first.values()] == [tuple(t.shape) for t in second.values()]
    one, other = (
        load_concept(library / "mia.safetensors", "", ""),
        load_concept(folder / "made/bob.safetensors", "", ""),
    )
    assert one.tokens["<mia>"]["text_encoder"].equal(other.tokens["<bob>"]["text_encoder"])
    sheets = library.parent / "training" / "bob"
    assert sorted(path.name for path in sheets.iterdir()) == ["sheet-000001.png", "sheet-000002.png"]


def test_model_option_is_relative_to_the_working_folder(cli, library, folder):
    (folder / "specs").mkdir()
    spec = {"recipe": "textual-inversion", "model": "elsewhere", "name": "mia", "class": "woman"}
    (folder / "specs" / "mia.yaml").write_text(yaml.safe_dump(spec))
    code, _, err = cli("train", "specs/mia.yaml", "--images", "mia", "--model", "./tiny-sdxl", *SHORT)
    assert code == 0, err
    assert made(library) == ["mia.safetensors"]


def test_out_of_memory_suggests_settings(expect_error, work, monkeypatch):
    def full(run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingRun, "take_step", full)
    expect_error(
        *WORD,
        message="out of memory (CUDA out of memory); --set a smaller batch_size (with gradient_accumulation_steps)",
    )
    assert not work.exists()


def test_two_concepts_of_a_yaml_file_are_trained_together(cli, library, folder):
    each = [{"name": name, "class": word, "images": "mia"} for name, word in (("mia", "woman"), ("rex", "dog"))]
    settings = {"steps": 2, "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "max_aspect_ratio": 1}
    spec = {"recipe": "textual-inversion", "model": "tiny-sdxl", "concepts": each, "settings": settings}
    (folder / "both.yaml").write_text(yaml.safe_dump(spec))
    code, out, err = cli("train", "both.yaml")
    assert code == 0, err
    assert out.splitlines() == [str(library / f"{name}.safetensors") for name in ("mia", "rex")]
    assert load_concept(library / "rex.safetensors", "", "").trigger == "<rex>"


@pytest.fixture
def expect_error_before_training(expect_error, library, work, monkeypatch):
    """Refused in one line, nothing written, and nothing taught."""

    def of(*words, message):
        before = made(library)
        monkeypatch.setattr(TrainingRun, "take_step", None)
        expect_error(*words, message=message)
        assert made(library) == before and not work.exists()

    return of


def test_existing_concept_is_kept_without_replace(expect_error_before_training, library):
    target = library / "mia.safetensors"
    target.write_bytes(b"mine")
    message = f"{target}: already exists; choose another --name or --out, or use --replace"
    expect_error_before_training(*LORA, *SHORT, message=message)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "lorra", *LORA[2:]), "lorra: recipe 'lorra': did you mean 'lora' or"),
        ((*LORA, "--set", "step=2"), "settings.step: no such setting; did you mean 'steps'"),
        ((*LORA, "--set", "steps"), "--set 'steps': want key=value, e.g. steps=500"),
        ((*LORA, "--set", "steps=["), "--set 'steps=[': '[' is not a number, word or true"),
        ((*LORA, "--set", "steps=0"), "settings.steps: 0; want at least 1"),
        ((*LORA, "--set", "num_new_tokens=two"), "settings.num_new_tokens: Input should be a valid integer"),
        (("train", "lora", "--images", "mia"), "concepts.0.name: Field required"),
        ((*LORA, "--images", "nowhere"), "nowhere': folder not found; give a folder of training images"),
        ((*LORA, "--name", "../mia"), "concepts.0.name: String should match pattern"),
        ((*LORA, "--model", "nowhere"), "model 'nowhere'"),
        (("train", "none.yaml"), "none.yaml: cannot be read (No such file or directory)"),
        (("train", "ed-lora", *LORA[2:]), "an image has no mask; put NAME.mask.png next to each image"),
    ],
)
def test_invalid_training_options_are_reported_in_one_line(expect_error_before_training, words, message):
    expect_error_before_training(*words, message=message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: [", "odd.yaml: not valid YAML"),
        ("# caf\udce9", "odd.yaml: not valid YAML"),
        ("- lora", "odd.yaml: contains list, want keys and values"),
        ("recipe: lora\nsettings: [steps]", "odd.yaml: contains settings: ['steps'], want keys and values"),
        ("recipe: lora\nname: mia\nclass: woman", "mia: no images; set images"),
    ],
)
def test_invalid_yaml_file_is_reported_in_one_line(expect_error_before_training, folder, text, message):
    (folder / "odd.yaml").write_bytes(text.encode(errors="surrogateescape"))
    expect_error_before_training("train", "odd.yaml", "--model", str(folder / "tiny-sdxl"), message=message)


def test_folder_without_images_is_rejected(expect_error_before_training, pictures):
    for path in pictures.iterdir():
        path.rename(path.with_suffix(".tif"))
    expect_error_before_training(*LORA, message="no usable image in the folder")


def test_unreadable_image_is_named_and_skipped(cli, pictures, library):
    (pictures / "torn.png").write_bytes((pictures / "red.png").read_bytes()[:40])
    code, _, err = cli(*WORD)
    assert code == 0 and any(line.startswith("'torn.png': ") and "skipped" in line for line in err.splitlines())
    assert read_card(library / "mia.safetensors")["pictures"] == 2


def test_caption_without_trigger_is_rejected(expect_error_before_training, pictures):
    (pictures / "red.txt").write_text("a woman in a park")
    message = "mia: the caption of red.png, 'a woman in a park', lacks the trigger '<mia>'; insert it before 'woman'"
    expect_error_before_training(*WORD, message=message)


def test_add_trigger_inserts_the_trigger_into_captions(cli, pictures, library):
    (pictures / "red.txt").write_text("a woman in a park")
    code, _, err = cli(*WORD, "--add-trigger")
    assert code == 0, err
    assert load_concept(library / "mia.safetensors", "", "").trigger == "<mia>"


@pytest.mark.parametrize("name", ["blip-2", "florence2"])
def test_captioner_writes_missing_captions_with_the_trigger(cli, captioners, pictures, library, monkeypatch, name):
    monkeypatch.setattr(captions, "MAX_NEW_TOKENS", 8)  # of noise, which the other tokenizer cuts small
    words = partialmethod(GenerationMixin.generate, suppress_tokens=[0, 1, 3, 4], min_new_tokens=8)
    monkeypatch.setattr(GenerationMixin, "generate", words)
    (pictures / "red.txt").write_text("a mia woman in a park")
    taught = []
    monkeypatch.setattr(
        "costars.train.session.train", lambda task, *args: taught.extend(task.subjects) or train(task, *args)
    )
    code, _, err = cli(*LORA, *SHORT, "--captioner", captioners / name)
    assert code == 0 and made(library) == ["mia.safetensors"], err
    says = captions.load_captioner(str(captioners / name), torch.device("cpu"), torch.float32)
    with Image.open(pictures / "green.png") as green:
        message = says(green)
    (mia,) = taught
    assert len(message.split()) >= 7
    assert [(e.name, e.caption) for e in mia.examples] == [
        ("green.png", captions.insert_trigger(message, "woman", "mia")),
        ("red.png", "a mia woman in a park"),
    ]
    assert captions.contains_word(mia.examples[0].caption, "mia") and mia.examples[0].caption != "a mia woman"


def test_folder_without_captioner_is_rejected(expect_error_before_training, folder):
    expect_error_before_training(
        *LORA, *SHORT, "--captioner", "tiny-sdxl", message="tiny-sdxl': the folder has no config.json; use blip"
    )


def test_class_of_several_tokens_is_rejected(expect_error_before_training):
    words = [word if word != "woman" else "zxqvrobot" for word in WORD]
    expect_error_before_training(*words, message="class 'zxqvrobot': the tokenizer splits it into")


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C comes in the second step."""
    real = TrainingRun.take_step

    def of(run):
        if run.step == 1:
            raise KeyboardInterrupt
        real(run)

    monkeypatch.setattr(TrainingRun, "take_step", of)
    return lambda: monkeypatch.setattr(TrainingRun, "take_step", real)


def test_interrupted_run_with_replace_suggests_resume_with_replace(cli, library, work, interrupted):
    kept = work / "checkpoint.safetensors"
    assert cli(*WORD, "--replace")[2].splitlines()[-2:] == [
        f"saved {kept}; continue with --resume --replace",
        "costars: stopped",
    ]
    assert f"{kept}: checkpoint of an unfinished run is discarded" in cli(*WORD, "--replace")[2].splitlines()


def test_interrupted_run_is_resumed(cli, expect_error, library, work, interrupted):
    assert cli(*WORD, "--name", "bob")[0] == 130
    code, out, err = cli(*WORD)
    told = f"saved {work / 'checkpoint.safetensors'}; continue with --resume"
    assert (code, out, err.splitlines()[-2:]) == (130, "", [told, "costars: stopped"])
    assert made(library) == [] and [path.name for path in work.iterdir()] == ["checkpoint.safetensors"]
    interrupted()
    kept = work / "checkpoint.safetensors"
    assert load_checkpoint(kept)[1]["step"] == "1"
    expect_error(*WORD, message=f"{kept}: checkpoint of an unfinished run; use --resume, or --replace to start again")
    message = "checkpoint.safetensors: started with seed=0, now seed=3; start again with --replace instead of --resume"
    expect_error(*WORD, "--resume", "--set", "seed=3", message=message)
    code, _, err = cli(*WORD, "--resume")
    assert code == 0 and f"preview: {work / 'sheet-000002.png'}" in err.splitlines(), err
    assert any(line.startswith("training 2/2 loss ") for line in err.splitlines()), err
    assert made(library) == ["mia.safetensors"] and [p.name for p in work.iterdir()] == ["sheet-000002.png"]
    code, _, err = cli(*WORD, "--name", "eve")
    assert code == 0, err
    one, other = (load_concept(library / f"{name}.safetensors", "", "") for name in ("mia", "eve"))
    assert one.tokens["<mia>"]["text_encoder"].equal(other.tokens["<eve>"]["text_encoder"])
    code, _, err = cli(*WORD, "--name", "bob", "--replace")
    assert code == 0, err


def test_generated_class_images_are_removed_at_the_end(cli, library, work):
    words = [*WORD, "--set", "num_class_images=1"]
    words[1] = "custom-diffusion"
    code, _, err = cli(*words)
    assert code == 0, err
    assert [path.name for path in work.iterdir()] == ["sheet-000002.png"]


@pytest.fixture
def women(folder) -> Path:
    """A folder with a picture of the class."""
    (folder / "women").mkdir()
    Image.new("RGB", (64, 64), "blue").save(folder / "women" / "a.png")
    return folder / "women"


def test_class_images_are_read_from_a_folder(cli, expect_error, library, folder, women, monkeypatch):
    """Beside where one works, or beside the file that names it."""
    monkeypatch.setattr(prior, "sample_latent", None)
    words = ("train", "dreambooth", *LORA[2:], *SHORT)
    code, _, err = cli(*words, "--class-images", "women")
    assert code == 0, err
    card = read_card(library / "mia.safetensors")
    assert (card["class_images"], card["recipe"]["num_class_images"]) == (1, 0)
    spec = {"recipe": "dreambooth", "model": "../tiny-sdxl", "name": "bob", "class": "woman"}
    spec |= {"images": "../mia", "class_images": "../women"}
    (folder / "specs").mkdir()
    (folder / "specs" / "bob.yaml").write_text(yaml.safe_dump(spec))
    code, _, err = cli("train", "specs/bob.yaml", *SHORT)
    assert code == 0 and read_card(library / "bob.safetensors")["class_images"] == 1, err


@pytest.mark.parametrize(
    ("recipe", "folder_name", "message"),
    [
        ("dreambooth", "nowhere", "nowhere': folder not found; give a folder of training images"),
        ("dreambooth", "empty", "empty': no usable image in the folder"),
        (
            "lora",
            "women",
            "mia: class_images have no effect with prior_loss_weight=0; set prior_loss_weight=1, or",
        ),
    ],
)
def test_unusable_class_images_are_rejected(expect_error_before_training, folder, women, recipe, folder_name, message):
    (folder / "empty").mkdir()
    expect_error_before_training("train", recipe, *LORA[2:], *SHORT, "--class-images", folder_name, message=message)


def test_loss_is_written_for_tensorboard(cli, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = cli(*WORD, "--tensorboard", "events")
    assert code == 0, err
    assert [name.startswith("events.out.tfevents") for name in os.listdir(folder / "events")] == [True]
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    scalars = events.Scalars("loss")
    assert [scalar.step for scalar in scalars] == [1, 2] and all(0 < scalar.value < 10 for scalar in scalars)


def test_training_with_a_lower_memory_tier_is_rejected(expect_error_before_training, monkeypatch):
    monkeypatch.setenv("COSTARS_MEMORY", "sequential")
    expect_error_before_training(*LORA, message="training needs the whole model; set COSTARS_MEMORY=full")


def test_card_contains_the_recipe(cli, library):
    assert cli(*WORD)[0] == 0
    shown = json.loads(cli("concepts", "show", "mia")[1])
    assert (shown["recipe"]["embedding_lr"], shown["recipe"]["seed"], shown["trigger"]) == (0.01, 0, "<mia>")


def full(*_, **__):
    """What a full disk does to a file that is written."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_does_not_end_training(cli, library, work, monkeypatch):
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", full)
    monkeypatch.setattr("costars.train.session.save_image", full)
    code, _, err = cli(*WORD, "--tensorboard", "events")
    assert code == 0 and made(library) == ["mia.safetensors"], err
    message = "cannot be written (No space left on device); training continues without it"
    lines = [line for line in err.splitlines() if message in line]
    assert lines == [f"--tensorboard events: {message}", f"{work / 'sheet-000002.png'}: {message}"]
    assert "preview: " not in err


def test_unwritable_checkpoint_is_reported_once(cli, library, work, monkeypatch):
    monkeypatch.setattr("costars.train.session.train", partial(train, save_every_s=0))
    monkeypatch.setattr(TrainingRun, "save", full)
    code, _, err = cli(*WORD)
    assert code == 0 and made(library) == ["mia.safetensors"], err
    message = f"{work / 'checkpoint.safetensors'}: cannot be written (No space left on device); training continues"
    assert [line.startswith(message) for line in err.splitlines()].count(True) == 1, err


def test_checkpoint_is_kept_if_the_concept_cannot_be_written(cli, expect_error, library, folder, work, monkeypatch):
    def torn(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    kept = work / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("costars.concepts.saving.save_file", torn)
        code, out, err = cli(*WORD)
    told = f"the checkpoint {kept} is kept; free disk space or choose another --out, then use --resume"
    assert (code, out) == (2, "") and err.splitlines()[-1].endswith(told), err
    assert err.splitlines()[-1].startswith(f"costars: {library / 'mia.safetensors'}: Error while serializing")
    assert "No space left on device" in err and "Traceback" not in err
    assert sorted(path.name for path in library.iterdir()) == ["char_a.safetensors", "char_b.safetensors"]
    assert load_checkpoint(kept)[1]["step"] == "2"
    code, out, err = cli(*WORD, "--resume", "--out", "elsewhere")
    assert (code, out) == (0, "elsewhere/mia.safetensors\n"), err
    assert not kept.exists()


def test_interrupt_on_a_full_disk_reports_the_checkpoint(cli, work, interrupted, monkeypatch):
    monkeypatch.setattr("costars.train.checkpoint.save_file", full)
    code, _, err = cli(*WORD)
    told = f"{work / 'checkpoint.safetensors'}: cannot be written (No space left on device)"
    assert (code, err.splitlines()[-2:]) == (130, [told, "costars: stopped"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "file/mia.safetensors"), "--out file: file is not a writable folder"),
        (("--out", "file/deep"), "--out file/deep: file is not a writable folder; choose another"),
        (("--work", "file/deep"), "--work file/deep: file is not a writable folder; choose another"),
        (("--out", "odd.safetensors", "--replace"), "odd.safetensors: is a folder; choose another --name or --out"),
    ],
)
def test_unwritable_folder_is_rejected_before_training(expect_error_before_training, folder, words, message):
    (folder / "file").write_bytes(b"mine")
    (folder / "odd.safetensors").mkdir()
    expect_error_before_training(*WORD, *words, message=message)


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


def test_em_trains_several_concepts_and_writes_a_report(cli, library, pictures):
    for colour in ("red", "green"):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 32, 64))
        mask.save(pictures / f"{colour}.ana.mask.png")
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


def test_em_trains_a_background(cli, library):
    """The class word of a park is several tokens of this model, so that a word of it starts at random."""
    code, _, err = cli(*EM, *FEW, "--background", "meadow=park", "--set", "embedding_init=random")
    assert code == 0, err
    assert made(library) == ["ana.safetensors", "meadow.safetensors", "rex.safetensors"]
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
    assert code == 2 and "style: 'meadow' was taught as '<meadow>', which" in err, err


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
    expect_error(*EM, "--name", "q", message="em: name next to concepts; move it into each concept")
    expect_error(*EM, "--background", "m", message="--background 'm': want NAME=CLASS, e.g. meadow=park")
    words = ("train", "lora", *EM[2:], "--background", "m=park")
    expect_error(*words, message="m: lora does not support background; use em, or leave it out")


def test_em_report_compares_a_single_given_mask(cli, library, pictures):
    Image.new("L", (64, 64), 255).save(pictures / "red.rex.mask.png")
    code, _, err = cli(*EM, *FEW)
    assert code == 0, err
    work = library.parent / "training" / "ana-rex"
    (row,) = json.loads((work / "report.json").read_text())["masks"]
    found = np.asarray(Image.open(work / "masks" / "red.rex.png")) > 127
    assert row["iou"] == {"rex": pytest.approx(found.mean(), abs=1e-3)}
    assert err.splitlines()[-1].startswith("rex: ") or f"masks and report: {work}" in err


def test_missing_matplotlib_does_not_end_training(cli, library, pictures, monkeypatch):
    Image.new("L", (64, 64), 255).save(pictures / "red.ana.mask.png")
    Image.new("L", (64, 64), 255).save(pictures / "green.ana.mask.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = cli(*EM, *FEW)
    assert code == 0 and "report.png: matplotlib is not installed" in err, err
    assert made(library) == ["ana.safetensors", "rex.safetensors"]
    assert not (library.parent / "training" / "ana-rex" / "checkpoint.safetensors").exists()


@pytest.fixture
def rows(library, pictures):
    """What the report says, the pictures having masks to hold against."""
    for colour in ("red", "green"):
        Image.new("L", (64, 64), 255).save(pictures / f"{colour}.ana.mask.png")
    report = library.parent / "training" / "ana-rex" / "report.json"
    return lambda: json.loads(report.read_text())["masks"]


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 3])
def test_report_of_a_resumed_run_includes_earlier_steps(cli, rows, monkeypatch, after):
    """Whether the run was stopped between two refreshes or right before one."""
    words, real = (*EM, *FEW, "--set", "steps=5", "--set", "em.refresh_every_steps=3"), TrainingRun.take_step
    assert cli(*words, "--work", "whole")[0] == 0
    unbroken = json.loads(Path("whole/report.json").read_text())["masks"]
    assert [row["step"] for row in unbroken] == [0, 3]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "take_step", lambda run: real(run) if run.step < after else stop())
        assert cli(*words, "--replace")[0] == 130
    assert rows() == unbroken[:1]
    code, _, err = cli(*words, "--replace", "--resume")
    assert code == 0, err
    assert rows() == unbroken


def test_unwritable_report_does_not_end_training(cli, library, monkeypatch):
    monkeypatch.setattr(em_report, "make_grid", full)
    code, _, err = cli(*EM, *FEW)
    assert code == 0 and "ana-rex: cannot be written (No space left on device)" in err, err
    assert made(library) == ["ana.safetensors", "rex.safetensors"]


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


def test_concept_in_no_caption_is_rejected(expect_error, pictures):
    for colour in ("red", "green"):
        (pictures / f"{colour}.txt").write_text("{ana}\n")
    expect_error(*EM, *FEW, message="rex: no caption contains {rex}; add it to a caption")
    expect_error("train", "em", "--images", "mia", "--concept", "ana", message="--concept 'ana': want NAME=CLASS")
