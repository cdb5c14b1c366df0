"""costars train: the files that it writes, from options and from a YAML file."""

import json
import os
from functools import partialmethod

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import GenerationMixin

from costars.concepts.load import load_concept, read_card
from costars.train.data import captioning as captions
from costars.train.data import class_images as prior
from costars.train.loop import train

pytestmark = pytest.mark.usefixtures("images")

LORA = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
SHORT = ("--set", "steps=2", "--set", "rank=2", "--set", "alpha=2", "--set", "gradient_checkpointing=false")
SHORT = (*SHORT, "--set", "gradient_accumulation_steps=1", "--set", "max_aspect_ratio=1")
WORD = ("train", "textual-inversion", *LORA[2:], *SHORT, "--set", "embedding_lr=0.01")


def test_trained_lora_is_listed_and_rendered(cli, library, work, write, new_concepts):
    code, out, err = cli(*LORA, *SHORT)
    target = library / "mia.safetensors"
    assert (code, out) == (0, f"{target}\n"), err
    assert err.splitlines()[-1].startswith("mia: ") and err.rstrip().endswith("MB, trigger 'mia'")
    assert new_concepts() == ["mia.safetensors"]
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


def test_model_option_is_relative_to_the_working_folder(cli, library, folder, new_concepts):
    (folder / "specs").mkdir()
    spec = {"recipe": "textual-inversion", "model": "elsewhere", "name": "mia", "class": "woman"}
    (folder / "specs" / "mia.yaml").write_text(yaml.safe_dump(spec))
    code, _, err = cli("train", "specs/mia.yaml", "--images", "mia", "--model", "./tiny-sdxl", *SHORT)
    assert code == 0, err
    assert new_concepts() == ["mia.safetensors"]


def test_two_concepts_of_a_yaml_file_are_trained_together(cli, library, folder):
    each = [{"name": name, "class": word, "images": "mia"} for name, word in (("mia", "woman"), ("rex", "dog"))]
    settings = {"steps": 2, "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "max_aspect_ratio": 1}
    spec = {"recipe": "textual-inversion", "model": "tiny-sdxl", "concepts": each, "settings": settings}
    (folder / "both.yaml").write_text(yaml.safe_dump(spec))
    code, out, err = cli("train", "both.yaml")
    assert code == 0, err
    assert out.splitlines() == [str(library / f"{name}.safetensors") for name in ("mia", "rex")]
    assert load_concept(library / "rex.safetensors", "", "").trigger == "<rex>"


def test_unreadable_image_is_named_and_skipped(cli, images, library):
    (images / "torn.png").write_bytes((images / "red.png").read_bytes()[:40])
    code, _, err = cli(*WORD)
    assert code == 0 and any(line.startswith("'torn.png': ") and "skipped" in line for line in err.splitlines())
    assert read_card(library / "mia.safetensors")["pictures"] == 2


def test_add_trigger_inserts_the_trigger_into_captions(cli, images, library):
    (images / "red.txt").write_text("a woman in a park")
    code, _, err = cli(*WORD, "--add-trigger")
    assert code == 0, err
    assert load_concept(library / "mia.safetensors", "", "").trigger == "<mia>"


@pytest.mark.parametrize("name", ["blip-2", "florence2"])
def test_captioner_writes_missing_captions_with_the_trigger(
    cli, captioners, images, library, monkeypatch, name, new_concepts
):
    monkeypatch.setattr(captions, "MAX_NEW_TOKENS", 8)  # of noise, which the other tokenizer cuts small
    words = partialmethod(GenerationMixin.generate, suppress_tokens=[0, 1, 3, 4], min_new_tokens=8)
    monkeypatch.setattr(GenerationMixin, "generate", words)
    (images / "red.txt").write_text("a mia woman in a park")
    subjects = []
    monkeypatch.setattr(
        "costars.train.session.train", lambda task, *args: subjects.extend(task.subjects) or train(task, *args)
    )
    code, _, err = cli(*LORA, *SHORT, "--captioner", captioners / name)
    assert code == 0 and new_concepts() == ["mia.safetensors"], err
    describe = captions.load_captioner(str(captioners / name), torch.device("cpu"), torch.float32)
    with Image.open(images / "green.png") as green:
        caption = describe(green)
    (mia,) = subjects
    assert len(caption.split()) >= 7
    assert [(e.name, e.caption) for e in mia.examples] == [
        ("green.png", captions.insert_trigger(caption, "woman", "mia")),
        ("red.png", "a mia woman in a park"),
    ]
    assert captions.contains_word(mia.examples[0].caption, "mia") and mia.examples[0].caption != "a mia woman"


def test_generated_class_images_are_removed_at_the_end(cli, library, work):
    words = [*WORD, "--set", "num_class_images=1"]
    words[1] = "custom-diffusion"
    code, _, err = cli(*words)
    assert code == 0, err
    assert [path.name for path in work.iterdir()] == ["sheet-000002.png"]


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


def test_loss_is_written_for_tensorboard(cli, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = cli(*WORD, "--tensorboard", "events")
    assert code == 0, err
    assert [name.startswith("events.out.tfevents") for name in os.listdir(folder / "events")] == [True]
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    scalars = events.Scalars("loss")
    assert [scalar.step for scalar in scalars] == [1, 2] and all(0 < scalar.value < 10 for scalar in scalars)


def test_card_contains_the_recipe(cli, library):
    assert cli(*WORD)[0] == 0
    shown = json.loads(cli("concepts", "show", "mia")[1])
    assert (shown["recipe"]["embedding_lr"], shown["recipe"]["seed"], shown["trigger"]) == (0.01, 0, "<mia>")
