"""costars train: invalid requests are one line on stderr, before anything is trained or written."""

import pytest
import torch

from costars.train.run import TrainingRun

pytestmark = pytest.mark.usefixtures("images")

LORA = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
SHORT = ("--set", "steps=2", "--set", "rank=2", "--set", "alpha=2", "--set", "gradient_checkpointing=false")
SHORT = (*SHORT, "--set", "gradient_accumulation_steps=1", "--set", "max_aspect_ratio=1")
WORD = ("train", "textual-inversion", *LORA[2:], *SHORT, "--set", "embedding_lr=0.01")


def test_out_of_memory_suggests_settings(expect_error, work, monkeypatch):
    def run_out_of_memory(run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingRun, "take_step", run_out_of_memory)
    expected = "out of memory (CUDA out of memory); --set a smaller batch_size (with gradient_accumulation_steps)"
    expect_error(*WORD, message=expected)
    assert not work.exists()


def test_existing_concept_is_kept_without_replace(expect_error_before_training, library):
    target = library / "mia.safetensors"
    target.write_bytes(b"mine")
    message = f"{target}: already exists; choose another --name or --out, or use --replace"
    expect_error_before_training(*LORA, *SHORT, message=message)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "lorra", *LORA[2:]), "lorra: unknown recipe 'lorra'; did you mean 'lora' or"),
        ((*LORA, "--set", "step=2"), "settings.step: no such setting; did you mean 'steps'"),
        ((*LORA, "--set", "steps"), "--set 'steps': want key=value, e.g. steps=500"),
        ((*LORA, "--set", "steps=["), "--set 'steps=[': '[' is not a number, word or true"),
        ((*LORA, "--set", "steps=0"), "settings.steps: 0; want at least 1"),
        ((*LORA, "--set", "num_new_tokens=two"), "settings.num_new_tokens: want a whole number (got 'two')"),
        (
            ("train", "lora", "--images", "mia"),
            "lora: name is missing; give --name ana (name: ana in a file); class is missing",
        ),
        ((*LORA, "--images", "nowhere"), "nowhere': folder not found; give a folder of training images"),
        ((*LORA, "--name", "../mia"), "lora: name: '../mia': a name has letters of any language"),
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
        ("# caf\udce9", "odd.yaml: is not UTF-8 text (byte 0xe9 at position 5)"),
        ("- lora", "odd.yaml: contains list, want keys and values"),
        ("recipe: lora\nsettings: [steps]", "odd.yaml: contains settings: ['steps'], want keys and values"),
        ("recipe: lora\nname: mia\nclass: woman", "mia: no images; give --images FOLDER"),
    ],
)
def test_invalid_yaml_file_is_reported_in_one_line(expect_error_before_training, folder, text, message):
    (folder / "odd.yaml").write_bytes(text.encode(errors="surrogateescape"))
    expect_error_before_training("train", "odd.yaml", "--model", str(folder / "tiny-sdxl"), message=message)


def test_folder_without_images_is_rejected(expect_error_before_training, images):
    for path in images.iterdir():
        path.rename(path.with_suffix(".tif"))
    expect_error_before_training(*LORA, message="no usable image in the folder")


def test_caption_without_trigger_is_rejected(expect_error_before_training, images):
    (images / "red.txt").write_text("a woman in a park")
    message = "mia: the caption of red.png, 'a woman in a park', lacks the trigger '<mia>'; insert it before 'woman'"
    expect_error_before_training(*WORD, message=message)


def test_folder_without_captioner_is_rejected(expect_error_before_training, folder):
    expect_error_before_training(
        *LORA, *SHORT, "--captioner", "tiny-sdxl", message="tiny-sdxl': the folder has no config.json; use blip"
    )


def test_class_of_several_tokens_is_rejected(expect_error_before_training):
    words = [word if word != "woman" else "zxqvrobot" for word in WORD]
    expect_error_before_training(*words, message="class 'zxqvrobot': the tokenizer splits it into")


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


def test_training_with_a_lower_memory_tier_is_rejected(expect_error_before_training, monkeypatch):
    monkeypatch.setenv("COSTARS_MEMORY", "sequential")
    expect_error_before_training(*LORA, message="training needs the whole model; set COSTARS_MEMORY=full")


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
