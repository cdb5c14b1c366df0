"""The tokenizer of the built-in world: its own words are one token each, any other text is spelled."""

import re

import pytest
from transformers import CLIPTokenizer

from costars_world.render.world import sample_picture
from costars_world.training.concepts import PACK, teaching
from costars_world.training.samples import PROMPTS
from costars_world.training.tokenizer import MAX_TOKENS, NAMES, words, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    size = write_tokenizer(folder, pad="!")
    loaded = CLIPTokenizer.from_pretrained(folder)
    assert len(loaded) == size
    return loaded


def ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)[1:-1]


def test_every_word_of_the_world_is_one_token_of_its_own(tokenizer):
    found = [ids(tokenizer, word) for word in words()]
    assert all(len(i) == 1 for i in found)
    assert len({i[0] for i in found}) == len(words()) == len(set(words()))


def test_captions_have_a_token_for_each_word_and_fit(tokenizer):
    for caption in [*PROMPTS, *(sample_picture(seed, count=2, detail=1.0).caption for seed in range(40))]:
        spelled = re.findall(r"[a-z]+|[^a-z\s]", caption)
        assert len(ids(tokenizer, caption)) == len(spelled) <= MAX_TOKENS - 2


@pytest.mark.parametrize("text", ["a zebra on the moon", "naïve 123!", "Ana in front of BO"])
def test_any_other_text_is_spelled_and_can_be_read_back(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text)).replace(" ", "") == text.lower().replace(" ", "")


def test_padding_and_ends_are_as_in_sdxl(tokenizer):
    padded = tokenizer("a woman", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
    assert padded[0] == tokenizer.bos_token_id and padded[3] == tokenizer.eos_token_id
    assert set(padded[4:].tolist()) == {tokenizer.pad_token_id} == {0}
    assert tokenizer.model_max_length == MAX_TOKENS == 77


def test_triggers_mean_nothing_else():
    captions = {w for seed in range(200) for w in sample_picture(seed, detail=1.0).caption.split()}
    assert len(set(NAMES)) == len(NAMES)
    assert not captions & set(NAMES)
    assert set(PACK) <= set(NAMES)


def test_the_pack_has_two_men_three_women_a_dog_a_cat_and_a_robot():
    classes = [who.class_name for who in PACK.values()]
    assert {name: classes.count(name) for name in set(classes)} == {
        "man": 2,
        "woman": 3,
        "dog": 1,
        "cat": 1,
        "robot": 1,
    }


def test_a_concept_is_taught_with_its_trigger_before_its_class():
    lesson = teaching("rex")
    assert 8 <= len(lesson.examples) <= 12
    said = [example.caption or "" for example in lesson.examples]
    assert all(caption.count("a rex dog") == caption.count("rex") == caption.count("dog") == 1 for caption in said)
    assert all(caption.startswith("a rex dog ") for caption in said[::2])  # alone
