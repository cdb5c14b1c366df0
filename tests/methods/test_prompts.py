"""The prompt of each path, made from the scene's."""

import pytest
import torch

from costars.errors import ConceptError, SceneError
from costars.methods.omg.attention import limited_words
from costars.methods.prompts import everyone_prompt, member_nouns, own_tokens, own_words, with_article, word_tokens
from costars.model.prompt_weighting import parse_prompt
from costars.resolve import resolve_scene
from costars.scene.scene import parse_scene
from costars.types import Concept


def concept(trigger: str, class_name: str) -> Concept:
    return Concept(trigger, class_name, trigger, "sdxl", {}, "", "")


CONCEPTS = {"ana": concept("zxa", "woman"), "rex": concept("", "dog"), "io": concept("io", "owl")}


def scene(**members):
    cast = {name: {"concept": name} | members.get(name, {}) for name in CONCEPTS}
    return parse_scene({"prompt": "{rex} before {ana}, {io} above", "cast": cast})


@pytest.fixture
def resolve(tiny):
    """A scene resolved on the tiny model, its concepts without layers."""
    return lambda made, concepts=CONCEPTS: resolve_scene(made, tiny, {name: concepts[name] for name in made.cast})


def test_layout_prompt_has_class_words_only(resolve):
    assert resolve(scene()).prompt == "a dog before a woman, an owl above"


def test_nouns_are_in_prompt_order_and_the_scene_overrides_the_concept():
    changed = member_nouns(scene(rex={"class_name": "wolf"}), CONCEPTS)
    assert list(changed.items()) == [("rex", "wolf"), ("ana", "woman"), ("io", "owl")]


@pytest.mark.parametrize(
    ("member", "prompt"),
    [
        ("ana", "a dog before a zxa woman, an owl above"),
        ("rex", "a dog before a woman, an owl above"),
        ("io", "a dog before a woman, an io owl above"),
    ],
)
def test_member_prompt_has_the_trigger_of_that_member_only(resolve, member, prompt):
    assert resolve(scene()).members[member].prompt == prompt


def test_given_member_prompt_is_used_unchanged(resolve):
    made = resolve(scene(ana={"prompt": "photo of {her}"}))
    assert made.members["ana"].prompt == "photo of {her}" and made.members["ana"].given_prompt


def test_articles_and_own_words():
    assert [with_article(w) for w in ("owl", "Elf", "woman")] == ["an owl", "an Elf", "a woman"]
    assert own_words(CONCEPTS["rex"], "dog") == "dog"
    assert own_words(CONCEPTS["ana"], "woman") == "zxa woman"


def positions(tiny, resolved, member):
    tokenizer = tiny.encoders[0].tokenizer
    tokens = own_tokens(tokenizer, resolved, resolved.members[member], {})
    ids = tokenizer(resolved.members[member].prompt).input_ids
    return tokens, tokenizer.decode([ids[i] for i in tokens]).replace(" ", "")


@pytest.mark.parametrize(("member", "words"), [("ana", "zxawoman"), ("rex", "dog"), ("io", "ioowl")])
def test_own_words_are_located_in_the_member_prompt(tiny, resolve, member, words):
    assert positions(tiny, resolve(scene()), member)[1] == words


def test_own_words_of_an_earlier_member_of_the_same_class_are_not_counted(tiny, resolve):
    cast = {name: {"concept": name} for name in ("rex", "ana")} | {"io": {"concept": "io", "class_name": "dog"}}
    no_trigger = {**CONCEPTS, "io": concept("", "owl")}
    made = resolve(parse_scene({"prompt": "{rex} and {io} before {ana}", "cast": cast}), no_trigger)
    first, second = (own_tokens(tiny.encoders[0].tokenizer, made, made.members[n], {}) for n in ("rex", "io"))
    assert len(first) == len(second) and max(first) < min(second)


def test_limited_words_are_own_words_and_class_words_of_other_classes(tiny, resolve):
    resolved = resolve(scene())
    tokenizer, words = tiny.encoders[0].tokenizer, limited_words(resolved)["ana"]
    ids = tokenizer(resolved.members["ana"].prompt).input_ids
    assert tokenizer.decode([ids[i] for i in words.own]).replace(" ", "") == "zxawoman"
    nouns = [noun for noun in resolved.nouns.values() if noun != "woman"]
    assert tokenizer.decode([ids[i] for i in words.others]).split() == nouns == ["dog", "owl"]
    women = {name: {"concept": name, "class_name": "woman"} for name in CONCEPTS}
    alike = resolve(parse_scene({"prompt": scene().prompt, "cast": women}))
    assert all(words.own and not words.others for words in limited_words(alike).values())


def test_every_occurrence_counts_in_a_given_prompt_and_none_is_an_error(tiny, resolve):
    tokens, words = positions(tiny, resolve(scene(ana={"prompt": "a zxa woman, the zxa woman"})), "ana")
    assert words == "zxawoman" * 2 and len(set(tokens)) == len(tokens)
    with pytest.raises(SceneError, match=r"cast.ana.prompt: 'a lady' does not contain 'zxa woman'.*own_words_share=0"):
        positions(tiny, resolve(scene(ana={"prompt": "a lady"})), "ana")


def test_a_slot_inside_a_word_is_rejected(tiny, resolve):
    made = resolve(parse_scene({"prompt": "two {rex}s", "cast": {"rex": {"concept": "rex"}}}))
    with pytest.raises(SceneError, match=r"^prompt: 'two a dogs' .* write \{rex\} as a word of its own"):
        positions(tiny, made, "rex")


def test_escaped_braces_are_not_slots(tiny, resolve):
    made = resolve(parse_scene({"prompt": "{{rex}} {rex}", "cast": {"rex": {"concept": "rex"}}}))
    tokens, words = positions(tiny, made, "rex")
    assert words == "dog" and len(tokens) < len(tiny.encoders[0].tokenizer("{rex} a dog").input_ids) - 3


@pytest.mark.parametrize(
    ("trigger", "prompt", "plain", "weighted"),
    [
        (r"saber \(fate\)", r"a saber \(fate\) woman in the forest", "saber (fate) woman", {}),
        ("saber (fate)", "a saber (fate) woman in the forest", "saber fate woman", {1.1: "fate"}),
        ("(ohwx:1.2)", "an (ohwx:1.2) woman in the forest", "ohwx woman", {1.2: "ohwx"}),
        ("[ohwx], red hat", "an [ohwx], red hat woman in the forest", "ohwx, red hat woman", {1 / 1.1: "ohwx"}),
        ("ohwx BREAK red", "an ohwx BREAK red woman in the forest", "ohwx red woman", {}),
    ],
)
@pytest.mark.parametrize("typed", [True, False], ids=["scene", "file"])
def test_a_trigger_is_read_as_a_prompt_is(tiny, resolve, typed, trigger, prompt, plain, weighted):
    """In the member's prompt, in that of everyone, and where its words are looked for."""
    concept = Concept("saber", "woman", "" if typed else trigger, "sdxl", {}, "saber", "0")
    cast = {"saber": {"concept": "saber", **({"trigger": trigger} if typed else {})}}
    made = resolve(parse_scene({"prompt": "{saber} in the forest", "cast": cast}), {"saber": concept})
    member, tokenizer = made.members["saber"], tiny.encoders[0].tokenizer
    assert member.prompt == everyone_prompt(made) == prompt
    parsed = parse_prompt(tokenizer, member.prompt)
    ids, weights = parsed.ids.flatten().tolist(), parsed.weights.flatten().tolist()
    tokens = own_tokens(tokenizer, made, member, {})
    assert [ids[i] for i in tokens] == tokenizer(plain).input_ids[1:-1]
    changed = {
        round(w, 6): tokenizer.decode([ids[i] for i, v in enumerate(weights) if v == w]) for w in {*weights} - {1}
    }
    assert {w: text.replace(" ", "") for w, text in changed.items()} == {round(w, 6): t for w, t in weighted.items()}


def test_brackets_in_a_class_word_are_literal(tiny, resolve):
    """A class is plain text, also where the layout looks for it."""
    cast = {"a": {"concept": "ana", "class_name": "woman (tall)"}, "b": {"concept": "rex"}}
    made = resolve(parse_scene({"prompt": "{a} and {b}", "cast": cast}), {"a": CONCEPTS["ana"], "b": CONCEPTS["rex"]})
    assert made.prompt == r"a woman \(tall\) and a dog" and made.members["a"].words == r"zxa woman \(tall\)"
    text = tiny.encode_text(made.prompt, ["woman (tall)"])
    tokenizer = tiny.encoders[0].tokenizer
    assert text.spans["woman (tall)"] == (tuple(word_tokens(tokenizer, made.prompt, ["woman (tall)"], {})),)
    assert len(text.spans["woman (tall)"][0]) == len(tokenizer("woman (tall)").input_ids) - 2


def test_a_learned_word_in_a_weighted_trigger_is_found(tiny, resolve):
    words = {e.name: torch.zeros(2, e.module.config.hidden_size) for e in tiny.encoders}
    toy = Concept("toy", "dog", "(<toy>:1.3)", "sdxl", {}, "toy", "0", tokens={"<toy>": words})
    made = resolve(parse_scene({"prompt": "photo of {toy}", "cast": {"toy": "toy"}}), {"toy": toy})
    assert made.members["toy"].prompt == "photo of a (<toy>:1.3) dog" and not made.notes
    assert own_tokens(tiny.encoders[0].tokenizer, made, made.members["toy"], toy.words) == [4, 5, 6]


def test_a_trigger_of_a_file_with_foreign_syntax_is_rejected_with_a_way_out(resolve):
    loaded = Concept("ana", "woman", "<lora:ana:1> ana", "sdxl", {}, "ana.safetensors", "0")
    made = {"prompt": "photo of {ana}", "cast": {"ana": {"concept": "ana"}}}
    with pytest.raises(ConceptError, match=r"'ana.safetensors': its trigger has '<lora:ana:1>' .* cast.ana.trigger$"):
        resolve(parse_scene(made), {"ana": loaded})
    made["cast"]["ana"]["trigger"] = "ana"
    assert resolve(parse_scene(made), {"ana": loaded}).members["ana"].prompt == "photo of an ana woman"


def test_what_is_probably_a_mistake_in_a_prompt_is_noted_with_its_field(resolve):
    cast = {"ana": {"concept": "ana", "negative_prompt": "(bad"}}
    made = resolve(parse_scene({"prompt": "{ana} in a <meadow>", "cast": cast, "negative_prompt": "bad)"}))
    fields = ["prompt", "negative_prompt", "cast.ana.negative_prompt"]
    assert [note.split(":")[0] for note in made.notes] == fields


def test_own_words_are_located_beside_a_learned_style_word(tiny, resolve):
    learned = {"inkwash": {e.name: torch.zeros(1, 4, e.module.config.hidden_size) for e in tiny.encoders}}
    ana = Concept("ana", "woman", "ana", "sdxl", {}, "ana", "0")
    made = resolve(parse_scene({"prompt": "inkwash of {ana} in the forest", "cast": {"ana": "ana"}}), {"ana": ana})
    member = made.members["ana"]
    text = tiny.encode_text(member.prompt, ["ana woman"], learned=learned)
    tokens = own_tokens(tiny.encoders[0].tokenizer, made, member, learned)
    assert tokens == list(text.spans["ana woman"][0])
    assert tokens != own_tokens(tiny.encoders[0].tokenizer, made, member, {})
