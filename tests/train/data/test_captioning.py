"""Captions: three families of models say one line, the same each time; the trigger goes where the class is named."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.errors import ModelError
from costars.train.data import captioning as captions
from costars.train.data.captioning import MAX_NEW_TOKENS, Captioner, contains_word, load_captioner, told

CPU = torch.device("cpu")
FAMILIES = ("blip", "blip-2", "florence2")
SPECIAL = {"<pad>", "<s>", "</s>", "<unk>", "<image>"}


@pytest.fixture(scope="module")
def captioner(captioners) -> Callable[..., Captioner]:
    """The models by name and dtype, each loaded once."""
    return cache(lambda name, dtype=torch.float32: load_captioner(name, CPU, dtype, offline=True, base=captioners))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def fails(source: str, base: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_captioner(source, CPU, torch.float32, offline=True, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copied(captioners: Path, name: str, to: Path, **config) -> Path:
    """A model's folder with a changed config.json."""
    folder = Path(shutil.copytree(captioners / name, to / name))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_caption_is_one_line_of_few_words_and_the_same_each_time(captioner, name, dtype):
    says = captioner(name, dtype)
    caption = says(picture())
    assert caption == says(picture()) == " ".join(caption.split())
    assert len(caption.split()) <= MAX_NEW_TOKENS and not set(caption.split()) & SPECIAL
    assert says(picture().convert("L")) == says(picture().convert("L").convert("RGB"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_caption_is_what_the_model_says_and_not_its_prompt(captioner, name, monkeypatch):
    """Each model is made to say a sentence with ends of line in it; nothing else is in the caption."""
    says = captioner(name)
    part = {"blip": "text_decoder", "blip-2": "language_model"}.get(name)
    real = getattr(says.checkpoint.model, part) if part else says.checkpoint.model
    sentence = says.checkpoint.tokenizer.convert_tokens_to_ids("a woman in the park".split())

    def only(_, ids):
        """Which token may come next: the one of the sentence at this place, then the end."""
        said = [i for i in ids.tolist() if i in sentence]
        return [sentence[len(said)] if len(said) < len(sentence) else 2]

    generate = real.generate
    monkeypatch.setattr(
        type(real), "generate", lambda _, *a, **k: generate(*a, **k, prefix_allowed_tokens_fn=only), raising=True
    )
    assert says(picture()) == "a woman in the park"


@pytest.mark.parametrize("name", FAMILIES)
def test_it_searches_without_chance_and_ends(captioner, name, monkeypatch):
    says, asked = captioner(name), {}
    monkeypatch.setattr(type(says.checkpoint.model), "generate", lambda _, **k: asked.update(k) or torch.tensor([[5]]))
    assert says(picture()) == "a"
    assert asked["max_new_tokens"] == 40 and asked["do_sample"] is False and asked["num_beams"] == says.beams > 1


def test_the_model_does_not_change_and_learns_nothing(captioner):
    for name in FAMILIES:
        model = captioner(name).checkpoint.model
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_what_is_no_captioner_is_an_error_that_says_what_is_known(captioners, tmp_path):
    message = fails(str(copied(captioners, "blip", tmp_path, model_type="git")))
    assert "its model_type is 'git', known: blip, blip-2, florence2; give blip such as Salesforce" in message
    assert "its model_type is None" in fails(str(copied(captioners, "blip-2", tmp_path, model_type=None)))
    assert "its model_type is ['blip']" in fails(str(copied(captioners, "florence2", tmp_path, model_type=["blip"])))


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_config_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "its config.json is damaged" in fails(str(tmp_path))


def test_a_folder_that_is_not_there_or_has_no_model_is_an_error(tmp_path):
    assert "no config.json there; give blip such as" in fails(str(tmp_path))
    assert "no such folder; give one, or a hub id such as Salesforce/blip2" in fails("nowhere", base=tmp_path)


def test_a_hub_id_is_looked_for_in_the_cache_alone_when_offline(captioners, monkeypatch):
    asked = []

    def fetched(name, wanted, *, offline, what):
        asked.append((name, offline, what, wanted))
        return captioners / "blip"

    monkeypatch.setattr(captions, "fetched", fetched)
    load_captioner("org/name@main", CPU, torch.float32, offline=True)
    assert asked == [("org/name@main", True, "captioner", ("*.json", "*.txt", "*.safetensors"))]


def test_pickles_and_missing_weights_are_refused(captioners, tmp_path):
    folder = copied(captioners, "blip", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pytorch_model.bin, and pickles are not read" in fails(str(folder))
    shutil.copy(captioners / "blip-2" / "model.safetensors", folder)
    assert "cannot be loaded" in fails(str(folder))


def test_files_of_an_older_make_are_refused(captioners, tmp_path):
    assert "no image_token_index" in fails(str(copied(captioners, "blip-2", tmp_path, image_token_index=None)))
    folder = copied(captioners, "florence2", tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "image_token"}))
    assert "image_token; its files are older than transformers wants" in fails(str(folder))


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a woman in a park", "an ana woman in a park"),
        ("A woman in a park", "An ana woman in a park"),
        ("the woman and a woman", "the ana woman and a woman"),
        ("a young woman", "a young ana woman"),
        ("Woman smiling", "ana Woman smiling"),
        ("a woman's hat", "an ana woman's hat"),
        ("two women in a park", "an ana woman, two women in a park"),
        ("a policewoman, a police-woman", "an ana woman, a policewoman, a police-woman"),
        ("", "an ana woman"),
        ("an ana woman", "an ana woman"),
        ("Ana, smiling", "Ana, smiling"),
        ("a banana by a woman", "a banana by an ana woman"),
        ("banana woman", "banana ana woman"),
    ],
)
def test_the_trigger_goes_before_the_class_word(caption, wanted):
    assert told(caption, "woman", "ana") == wanted


def test_classes_of_several_words_none_and_triggers_with_signs():
    assert told("an old woman reads", "old woman", "mia") == "a mia old woman reads"
    assert told("a park", "", "mia") == "a mia, a park"
    assert told("a dog (small)", "dog", r"<v\1>") == r"a <v\1> dog (small)"
    assert told("a dog (small)", "(small)", "mia") == "a dog mia (small)"


@given(st.text(max_size=30), st.sampled_from(["woman", "old man", "c++"]), st.sampled_from(["ana", "<x>", "mia"]))
def test_once_told_the_trigger_is_there_and_nothing_else_changes(caption, class_name, trigger):
    once = told(caption, class_name, trigger)
    assert contains_word(once, trigger) and told(once, class_name, trigger) == once
    assert caption in once or contains_word(caption, class_name)
