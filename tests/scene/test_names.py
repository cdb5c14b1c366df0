"""One rule for names, and one for words."""

import unicodedata

import pytest

from costars.errors import SceneError
from costars.scene.names import find_words_problem, is_name, suggest_name
from costars.scene.scene import parse_scene


@pytest.mark.parametrize("name", ["ana", "Ana-Maria_2", "2b", "1girl", "José", "ana日本", "अनु", "Ёлка", "a" * 64])
def test_names_of_any_language(name):
    assert is_name(name) and is_name(unicodedata.normalize("NFD", name)) == (len(name) <= 64)
    scene = parse_scene({"prompt": f"{{{name}}} in a park", "cast": {name: "builtin/ana"}})
    assert scene.slots() == [unicodedata.normalize("NFC", name)]


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "-a", "_a", "12", "a.b", "a/b", "..", "a\n", "a'", "́a", "a" * 65, "😀"]
)
def test_what_is_no_name(name):
    assert not is_name(name) and is_name(suggest_name(name))


def test_a_slot_and_its_member_may_be_composed_differently():
    """As from a file of macOS, which decomposes accents."""
    composed, decomposed = (unicodedata.normalize(form, "{josé} in a park") for form in ("NFC", "NFD"))
    for prompt, key in ((composed, "NFD"), (decomposed, "NFC")):
        scene = parse_scene({"prompt": prompt, "cast": {unicodedata.normalize(key, "josé"): "builtin/ana"}})
        assert scene.slots() == [*scene.cast] == ["josé"]


def test_a_slot_that_is_no_name_is_refused_with_the_rule():
    with pytest.raises(SceneError, match="a slot is a name in braces, 'a b' is none; a name has letters of any lang"):
        parse_scene({"prompt": "{a b}", "cast": {"a b": "builtin/ana"}})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (" ", "is blank; write a word"),
        ("a\nb", "has a line break or another character that is not printed"),
        ("\x1b[2J", "has a line break or another character"),
        ("a" * 501, "has 501 characters; want at most 500"),
        ("{ana}", "has a brace, which stands for a slot"),
    ],
)
def test_words_that_cannot_be_in_a_prompt(words, problem):
    assert find_words_problem(words).startswith(problem) and find_words_problem("saber (fate), red hat") is None
    for field in ("class_name", "trigger"):
        with pytest.raises(SceneError, match=rf"cast\.ana\.{field}: ") as caught:
            parse_scene({"prompt": "{ana}", "cast": {"ana": {"concept": "builtin/ana", field: words}}})
        assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "{ana} AND a dog"}, "prompt: 'AND' (joins"),
        ({"negative_prompt": "embedding:easyneg"}, "negative_prompt: 'embedding:easyneg' (a textual inversion"),
        ({"cast": {"ana": {"concept": "builtin/ana", "prompt": "a [cat|dog]"}}}, "cast.ana.prompt: '[cat|dog]' (alt"),
        ({"cast": {"ana": {"concept": "builtin/ana", "trigger": "__ana__"}}}, "cast.ana.trigger: '__ana__' (a wild"),
        ({"emphasis": "norm"}, "emphasis: Input should be 'original', 'no_norm' or 'ignore'"),
    ],
)
def test_a_scene_names_the_field_with_foreign_syntax(changes, field):
    data = {"prompt": "{ana} in a park", "cast": {"ana": "builtin/ana"}}
    with pytest.raises(SceneError) as caught:
        parse_scene(data | changes)
    assert field in str(caught.value) or (field.startswith("emphasis") and "emphasis: " in str(caught.value))
