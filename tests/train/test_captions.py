"""Captions: three families of models say one line, the same each time; the trigger goes where the class is named."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from costars.errors import ModelError
from costars.train import captions
from costars.train.captions import MOST_TOKENS, Captioner, has_word, load_captioner, told

CPU = torch.device("cpu")
FAMILIES = ("blip", "blip-2", "florence2")
WORDS = "<pad> <s> </s> <unk> <image> a woman in the park with red hat What does image describe?".split()
IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
SIZE = {"height": 32, "width": 32}


def tokenizer(**changes) -> hf.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), WORDS, strict=False))
    special["extra_special_tokens"] = {"image_token": "<image>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, **special | changes)


def save_blip(folder: Path) -> None:
    text = {**SMALL, **IDS, "sep_token_id": 2, "encoder_hidden_size": 16}
    config = hf.BlipConfig(text_config=text, vision_config=VISION)
    hf.BlipForConditionalGeneration(config).save_pretrained(folder)
    hf.BlipImageProcessorPil(size=SIZE).save_pretrained(folder)


def save_blip2(folder: Path) -> None:
    text = {
        "model_type": "opt",
        **SMALL,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 64,
        **IDS,
    }
    former = {**SMALL, "vocab_size": len(WORDS)}
    config = hf.Blip2Config(
        text_config=text, vision_config=VISION, qformer_config=former, num_query_tokens=4, image_token_index=4
    )
    hf.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    hf.BlipImageProcessorPil(size=SIZE).save_pretrained(folder)


def save_florence(folder: Path) -> None:
    """Its tower makes 8 x 8 cells of the picture, and a token of each and of their mean."""
    vision = {"depths": [1], "patch_size": [7], "patch_stride": [4], "patch_padding": [3], "patch_prenorm": [False]}
    vision |= {"embed_dim": [16], "num_heads": [2], "num_groups": [2], "window_size": 4, "projection_dim": 16}
    ends = {f"{end}coder_{what}": 1 for end in ("en", "de") for what in ("layers", "ffn_dim", "attention_heads")}
    text = {"model_type": "bart", "d_model": 16, "max_position_embeddings": 128, "decoder_start_token_id": 2} | ends
    config = hf.Florence2Config(vision_config=vision, text_config=text | IDS, image_token_id=4)
    hf.Florence2ForConditionalGeneration(config).save_pretrained(folder)
    hf.CLIPImageProcessorPil(size=SIZE, do_center_crop=False, image_seq_length=65).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with a tiny random model of each family."""
    root = tmp_path_factory.mktemp("captioners")
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, save in zip(FAMILIES, (save_blip, save_blip2, save_florence), strict=True):
        save(root / name)
        tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def captioner(folders) -> Callable[..., Captioner]:
    """The models by name and dtype, each loaded once."""
    return cache(lambda name, dtype=torch.float32: load_captioner(name, CPU, dtype, offline=True, base=folders))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def fails(source: str, base: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_captioner(source, CPU, torch.float32, offline=True, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copied(folders: Path, name: str, to: Path, **config) -> Path:
    """A model's folder with a changed config.json."""
    folder = Path(shutil.copytree(folders / name, to / name))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_caption_is_one_line_of_few_words_and_the_same_each_time(captioner, name, dtype):
    says = captioner(name, dtype)
    caption = says(picture())
    assert caption == says(picture()) == " ".join(caption.split())
    assert len(caption.split()) <= MOST_TOKENS and not set(caption.split()) & set(WORDS[:5])
    assert says(picture().convert("L")) == says(picture().convert("L").convert("RGB"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_caption_is_what_the_model_says_and_not_its_prompt(captioner, name, monkeypatch):
    """Each model is made to say a sentence with ends of line in it; nothing else is in the caption."""
    says = captioner(name)
    part = {"blip": "text_decoder", "blip-2": "language_model"}.get(name)
    real = getattr(says.checkpoint.model, part) if part else says.checkpoint.model
    sentence = [WORDS.index(word) for word in "a woman in the park".split()]

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


def test_what_is_no_captioner_is_an_error_that_says_what_is_known(folders, tmp_path):
    message = fails(str(copied(folders, "blip", tmp_path, model_type="git")))
    assert "its model_type is 'git', known: blip, blip-2, florence2; give blip such as Salesforce" in message
    assert "its model_type is None" in fails(str(copied(folders, "blip-2", tmp_path, model_type=None)))
    assert "its model_type is ['blip']" in fails(str(copied(folders, "florence2", tmp_path, model_type=["blip"])))


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_config_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "its config.json is damaged" in fails(str(tmp_path))


def test_a_folder_that_is_not_there_or_has_no_model_is_an_error(tmp_path):
    assert "no config.json there; give blip such as" in fails(str(tmp_path))
    assert "no such folder; give one, or a hub id such as Salesforce/blip2" in fails("nowhere", base=tmp_path)


def test_a_hub_id_is_looked_for_in_the_cache_alone_when_offline(folders, monkeypatch):
    asked = []

    def fetched(name, wanted, *, offline, what):
        asked.append((name, offline, what, wanted))
        return folders / "blip"

    monkeypatch.setattr(captions, "fetched", fetched)
    load_captioner("org/name@main", CPU, torch.float32, offline=True)
    assert asked == [("org/name@main", True, "captioner", ("*.json", "*.txt", "*.safetensors"))]


def test_pickles_and_missing_weights_are_refused(folders, tmp_path):
    folder = copied(folders, "blip", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pytorch_model.bin, and pickles are not read" in fails(str(folder))
    shutil.copy(folders / "blip-2" / "model.safetensors", folder)
    assert "cannot be loaded" in fails(str(folder))


def test_files_of_an_older_make_are_refused(folders, tmp_path):
    assert "no image_token_index" in fails(str(copied(folders, "blip-2", tmp_path, image_token_index=None)))
    folder = copied(folders, "florence2", tmp_path)
    tokenizer(extra_special_tokens={}).save_pretrained(folder)
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
    assert has_word(once, trigger) and told(once, class_name, trigger) == once
    assert caption in once or has_word(caption, class_name)
