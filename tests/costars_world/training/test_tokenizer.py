"""Each word of the built-in captions is one token, any other text is spelled."""

import re

import pytest
from transformers import CLIPTokenizer

from costars_world.render.world import sample_picture
from costars_world.training.concepts import PACK
from costars_world.training.samples import PROMPTS
from costars_world.training.tokenizer import MAX_TOKENS, TRIGGER_WORDS, list_words, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    size = write_tokenizer(folder, pad="!")
    loaded = CLIPTokenizer.from_pretrained(folder)
    assert len(loaded) == size
    return loaded


def token_ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)[1:-1]


def test_every_caption_word_is_one_token(tokenizer):
    found = [token_ids(tokenizer, word) for word in list_words()]
    assert all(len(i) == 1 for i in found)
    assert len({i[0] for i in found}) == len(list_words()) == len(set(list_words()))


def test_captions_have_one_token_per_word_and_fit(tokenizer):
    for caption in [*PROMPTS, *(sample_picture(seed, count=2, detail=1.0).caption for seed in range(40))]:
        spelled = re.findall(r"[a-z]+|[^a-z\s]", caption)
        assert len(token_ids(tokenizer, caption)) == len(spelled) <= MAX_TOKENS - 2


@pytest.mark.parametrize("text", ["a zebra on the moon", "naïve 123!", "Ana in front of BO"])
def test_other_text_is_spelled_and_decodes(tokenizer, text):
    assert tokenizer.decode(token_ids(tokenizer, text)).replace(" ", "") == text.lower().replace(" ", "")


def test_padding_and_special_tokens_are_as_in_sdxl(tokenizer):
    padded = tokenizer("a woman", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
    assert padded[0] == tokenizer.bos_token_id and padded[3] == tokenizer.eos_token_id
    assert set(padded[4:].tolist()) == {tokenizer.pad_token_id} == {0}
    assert tokenizer.model_max_length == MAX_TOKENS == 77


def test_trigger_words_are_not_in_captions():
    captions = {w for seed in range(200) for w in sample_picture(seed, detail=1.0).caption.split()}
    assert len(set(TRIGGER_WORDS)) == len(TRIGGER_WORDS)
    assert not captions & set(TRIGGER_WORDS)
    assert set(PACK) <= set(TRIGGER_WORDS)
