"""A scene's prompt as each path reads it."""

import pytest
import torch

from costars.errors import SceneError
from costars.methods.omg.attention import members_words
from costars.methods.prompts import (
    article,
    class_names,
    global_prompt,
    member_prompt,
    own_tokens,
    own_words,
)
from costars.model.prompt_weighting import read
from costars.scene.scene import parse_scene
from costars.types import Concept, Job


def concept(trigger: str, class_name: str) -> Concept:
    return Concept(trigger, class_name, trigger, "sdxl", {}, "", "")


CONCEPTS = {"ana": concept("zxa", "woman"), "rex": concept("", "dog"), "io": concept("io", "owl")}


def scene(**members):
    cast = {name: {"concept": name} | members.get(name, {}) for name in CONCEPTS}
    return parse_scene({"prompt": "{rex} before {ana}, {io} above", "cast": cast})


def test_every_slot_is_its_class_for_the_layout():
    classes = class_names(scene(), CONCEPTS)
    assert global_prompt(scene(), classes) == "a dog before a woman, an owl above"


def test_classes_come_in_the_prompts_order_and_the_scene_may_change_them():
    changed = class_names(scene(rex={"class_name": "wolf"}), CONCEPTS)
    assert list(changed.items()) == [("rex", "wolf"), ("ana", "woman"), ("io", "owl")]


@pytest.mark.parametrize(
    ("member", "prompt"),
    [
        ("ana", "a dog before a zxa woman, an owl above"),
        ("rex", "a dog before a woman, an owl above"),
        ("io", "a dog before a woman, an io owl above"),
    ],
)
def test_a_members_own_prompt_names_only_the_member(member, prompt):
    made = scene()
    assert member_prompt(made, member, class_names(made, CONCEPTS), CONCEPTS[member]) == prompt


def test_a_members_prompt_may_be_given_and_stays_as_it_is():
    made = scene(ana={"prompt": "photo of {her}"})
    assert member_prompt(made, "ana", class_names(made, CONCEPTS), CONCEPTS["ana"]) == "photo of {her}"


def test_articles_and_own_words():
    assert [article(w) for w in ("owl", "Elf", "woman")] == ["an owl", "an Elf", "a woman"]
    assert own_words(CONCEPTS["rex"], "dog") == "dog"
    assert own_words(CONCEPTS["ana"], "woman") == "zxa woman"


def positions(tiny, made, member):
    tokenizer = tiny.encoders[0].tokenizer
    tokens = own_tokens(tokenizer, made, member, class_names(made, CONCEPTS), CONCEPTS[member], {})
    ids = tokenizer(member_prompt(made, member, class_names(made, CONCEPTS), CONCEPTS[member])).input_ids
    return tokens, tokenizer.decode([ids[i] for i in tokens]).replace(" ", "")


@pytest.mark.parametrize(("member", "words"), [("ana", "zxawoman"), ("rex", "dog"), ("io", "ioowl")])
def test_a_members_own_words_are_found_in_its_prompt(tiny, member, words):
    assert positions(tiny, scene(), member)[1] == words


def test_another_of_the_same_class_before_a_member_is_not_meant(tiny):
    cast = {name: {"concept": name} for name in ("rex", "ana")} | {"io": {"concept": "io", "class_name": "dog"}}
    nameless = {**CONCEPTS, "io": concept("", "owl")}
    made = parse_scene({"prompt": "{rex} and {io} before {ana}", "cast": cast})
    classes, tokenizer = class_names(made, nameless), tiny.encoders[0].tokenizer
    first, second = (own_tokens(tokenizer, made, n, classes, nameless[n], {}) for n in ("rex", "io"))
    assert len(first) == len(second) and max(first) < min(second)


def test_the_others_class_words_are_found_where_they_are_of_another_class(tiny):
    job = Job(parse_scene(scene().model_dump() | {"model": "builtin"}).settled(), CONCEPTS)
    tokenizer, classes = tiny.encoders[0].tokenizer, class_names(job.scene, CONCEPTS)
    words = members_words(tiny, job)["ana"]
    ids = tokenizer(member_prompt(job.scene, "ana", classes, CONCEPTS["ana"])).input_ids
    assert tokenizer.decode([ids[i] for i in words.own]).replace(" ", "") == "zxawoman"
    nouns = [noun for noun in classes.values() if noun != "woman"]
    assert tokenizer.decode([ids[i] for i in words.others]).split() == nouns == ["dog", "owl"]
    women = {name: {"concept": name, "class_name": "woman"} for name in CONCEPTS}
    alike = parse_scene({"prompt": scene().prompt, "cast": women}).settled()
    assert all(words.own and not words.others for words in members_words(tiny, Job(alike, CONCEPTS)).values())


def test_in_a_given_prompt_every_occurrence_counts_and_none_is_an_error(tiny):
    tokens, words = positions(tiny, scene(ana={"prompt": "a zxa woman, the zxa woman"}), "ana")
    assert words == "zxawoman" * 2 and len(set(tokens)) == len(tokens)
    with pytest.raises(
        SceneError, match=r"cast.ana.prompt: 'a lady' does not hold the words 'zxa woman'.*own_words_share=0"
    ):
        positions(tiny, scene(ana={"prompt": "a lady"}), "ana")


def test_a_slot_that_is_no_word_of_its_own_is_told_of_the_scenes_prompt(tiny):
    made = parse_scene({"prompt": "two {rex}s", "cast": {"rex": {"concept": "rex"}}})
    with pytest.raises(SceneError, match=r"^prompt: 'two a dogs' .* let \{rex\} stand as a word of its own"):
        positions(tiny, made, "rex")


def test_braces_in_a_prompt_are_no_slots(tiny):
    made = parse_scene({"prompt": "{{rex}} {rex}", "cast": {"rex": {"concept": "rex"}}})
    tokens, words = positions(tiny, made, "rex")
    assert words == "dog" and len(tokens) < len(tiny.encoders[0].tokenizer("{rex} a dog").input_ids) - 3


def test_brackets_in_names_are_brackets_not_emphasis(tiny):
    concept = Concept("saber", "woman", "saber (fate)", "sdxl", {}, "saber", "0")
    made = parse_scene({"prompt": "{saber} in the forest", "cast": {"saber": "saber"}})
    classes = class_names(made, {"saber": concept})
    prompt = member_prompt(made, "saber", classes, concept)
    assert prompt == r"a saber \(fate\) woman in the forest"
    tokens = own_tokens(tiny.encoders[0].tokenizer, made, "saber", classes, concept, {})
    assert len(tokens) == len(tiny.encoders[0].tokenizer("saber (fate) woman").input_ids) - 2
    weights = read(tiny.encoders[0].tokenizer, prompt).weights
    assert bool((weights == 1).all())


def test_own_words_are_found_beside_a_style_that_was_taught_as_a_word(tiny):
    learned = {"inkwash": {e.name: torch.zeros(1, 4, e.module.config.hidden_size) for e in tiny.encoders}}
    made = parse_scene({"prompt": "inkwash of {ana} in the forest", "cast": {"ana": "ana"}})
    concept = Concept("ana", "woman", "ana", "sdxl", {}, "ana", "0")
    classes = class_names(made, {"ana": concept})
    text = tiny.encode_text(member_prompt(made, "ana", classes, concept), ["ana woman"], learned=learned)
    tokens = own_tokens(tiny.encoders[0].tokenizer, made, "ana", classes, concept, learned)
    assert tokens == list(text.spans["ana woman"][0])
    assert tokens != own_tokens(tiny.encoders[0].tokenizer, made, "ana", classes, concept, {})
