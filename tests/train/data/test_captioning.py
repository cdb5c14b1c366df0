"""Captioning with BLIP, BLIP-2 and Florence-2, and inserting the trigger into captions."""

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
from costars.train.data import captioning
from costars.train.data.captioning import MAX_NEW_TOKENS, Captioner, contains_word, insert_trigger, load_captioner

CPU = torch.device("cpu")
FAMILIES = ("blip", "blip-2", "florence2")
SPECIAL = {"<pad>", "<s>", "</s>", "<unk>", "<image>"}


@pytest.fixture(scope="module")
def captioner(captioners) -> Callable[..., Captioner]:
    """Captioners by name and dtype, each loaded once."""
    return cache(lambda name, dtype=torch.float32: load_captioner(str(captioners / name), CPU, dtype, offline=True))


def random_image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def error_of(source: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_captioner(source, CPU, torch.float32, offline=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copy_model(captioners: Path, name: str, to: Path, **config) -> Path:
    """Copy a model folder and change its config.json."""
    folder = Path(shutil.copytree(captioners / name, to / name))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_caption_is_one_short_line_and_deterministic(captioner, name, dtype):
    model = captioner(name, dtype)
    caption = model(random_image())
    assert caption == model(random_image()) == " ".join(caption.split())
    assert len(caption.split()) <= MAX_NEW_TOKENS and not set(caption.split()) & SPECIAL
    assert model(random_image().convert("L")) == model(random_image().convert("L").convert("RGB"))


@pytest.mark.parametrize("name", FAMILIES)
def test_caption_excludes_the_task_prompt(captioner, name, monkeypatch):
    """Generation is constrained to one sentence; the caption is exactly that sentence."""
    model = captioner(name)
    part = {"blip": "text_decoder", "blip-2": "language_model"}.get(name)
    real = getattr(model.checkpoint.model, part) if part else model.checkpoint.model
    sentence = model.checkpoint.tokenizer.convert_tokens_to_ids("a woman in the park".split())

    def allowed_tokens(_, ids):
        """The next token of the sentence, or the end token after it."""
        done = [i for i in ids.tolist() if i in sentence]
        return [sentence[len(done)] if len(done) < len(sentence) else 2]

    generate = real.generate
    monkeypatch.setattr(
        type(real),
        "generate",
        lambda _, *a, **k: generate(*a, **k, prefix_allowed_tokens_fn=allowed_tokens),
        raising=True,
    )
    assert model(random_image()) == "a woman in the park"


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_uses_beam_search_without_sampling(captioner, name, monkeypatch):
    model, arguments = captioner(name), {}
    monkeypatch.setattr(
        type(model.checkpoint.model), "generate", lambda _, **k: arguments.update(k) or torch.tensor([[5]])
    )
    assert model(random_image()) == "a"
    assert (
        arguments["max_new_tokens"] == 40
        and arguments["do_sample"] is False
        and arguments["num_beams"] == model.num_beams > 1
    )


def test_model_is_in_eval_mode_without_gradients(captioner):
    for name in FAMILIES:
        module = captioner(name).checkpoint.model
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_unsupported_model_type_is_rejected(captioners, tmp_path):
    message = error_of(str(copy_model(captioners, "blip", tmp_path, model_type="git")))
    assert "model_type 'git' is not supported; use blip such as Salesforce" in message
    assert "model_type None is not supported" in error_of(
        str(copy_model(captioners, "blip-2", tmp_path, model_type=None))
    )
    assert "model_type ['blip'] is not supported" in error_of(
        str(copy_model(captioners, "florence2", tmp_path, model_type=["blip"]))
    )


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_invalid_config_is_rejected(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json is not valid JSON" in error_of(str(tmp_path))


def test_missing_folder_or_config_is_rejected(tmp_path):
    assert "the folder has no config.json; use blip such as" in error_of(str(tmp_path))
    assert "folder not found; give a folder or a hub id such as Salesforce/blip2" in error_of(str(tmp_path / "nowhere"))


def test_hub_id_is_fetched_from_the_cache_when_offline(captioners, monkeypatch):
    calls = []

    def download_from_hub(name, wanted, *, offline, what):
        calls.append((name, offline, what, wanted))
        return captioners / "blip"

    monkeypatch.setattr(captioning, "download_from_hub", download_from_hub)
    load_captioner("org/name@main", CPU, torch.float32, offline=True)
    assert calls == [("org/name@main", True, "captioner", ("*.json", "*.txt", "*.safetensors"))]


def test_pickles_and_incomplete_weights_are_rejected(captioners, tmp_path):
    folder = copy_model(captioners, "blip", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pytorch_model.bin (pickles are not read)" in error_of(str(folder))
    shutil.copy(captioners / "blip-2" / "model.safetensors", folder)
    assert "cannot be loaded" in error_of(str(folder))


def test_outdated_model_files_are_rejected(captioners, tmp_path):
    assert "no image_token_index" in error_of(str(copy_model(captioners, "blip-2", tmp_path, image_token_index=None)))
    folder = copy_model(captioners, "florence2", tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "image_token"}))
    assert "image_token; the files are too old for this version of transformers" in error_of(str(folder))


@pytest.mark.parametrize(
    ("caption", "expected"),
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
def test_trigger_is_inserted_before_the_class_word(caption, expected):
    assert insert_trigger(caption, "woman", "ana") == expected


def test_insert_trigger_with_phrases_empty_class_and_special_characters():
    assert insert_trigger("an old woman reads", "old woman", "mia") == "a mia old woman reads"
    assert insert_trigger("a park", "", "mia") == "a mia, a park"
    assert insert_trigger("a dog (small)", "dog", r"<v\1>") == r"a <v\1> dog (small)"
    assert insert_trigger("a dog (small)", "(small)", "mia") == "a dog mia (small)"


@given(st.text(max_size=30), st.sampled_from(["woman", "old man", "c++"]), st.sampled_from(["ana", "<x>", "mia"]))
def test_insert_trigger_is_idempotent_and_keeps_the_caption(caption, class_name, trigger):
    once = insert_trigger(caption, class_name, trigger)
    assert contains_word(once, trigger) and insert_trigger(once, class_name, trigger) == once
    assert caption in once or contains_word(caption, class_name)
