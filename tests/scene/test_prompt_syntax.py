"""The syntax of prompts: weights, brackets, chunks, and what is refused by name."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costars.errors import SceneError
from costars.scene.prompt_syntax import (
    escape_brackets,
    find_foreign_syntax,
    find_prompt_notes,
    parse_emphasis,
    parse_sections,
    to_plain_text,
    unescape_brackets,
)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a man", [("a man", 1.0)]),
        ("a (man:1.5) here", [("a ", 1.0), ("man", 1.5), (" here", 1.0)]),
        ("a (man : 1.5 )", [("a ", 1.0), ("man ", 1.5)]),
        ("a (man)", [("a ", 1.0), ("man", 1.1)]),
        ("a [man]", [("a ", 1.0), ("man", 1 / 1.1)]),
        ("((man:2) here:0.5)", [("man", 1.0), (" here", 0.5)]),
        ("((man))", [("man", 1.1 * 1.1)]),
        ("[(man)]", [("man", 1 / 1.1 * 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:-1)", [("a", -1.0)]),
        (r"a \(man\)", [("a (man)", 1.0)]),
        (r"a \[man\] \\", [("a [man] \\", 1.0)]),
        (r"(saber \(fate\):1.2)", [("saber (fate)", 1.2)]),
        ("a (man", [("a (man", 1.0)]),
        ("a man)", [("a man)", 1.0)]),
        ("a man:1.2)", [("a man:1.2)", 1.0)]),
        ("([a) b]", [("(", 1.0), ("a) b", 1 / 1.1)]),
        ("", []),
    ],
)
def test_emphasis_is_parsed(prompt, parts):
    assert parse_emphasis(prompt) == parts


@given(st.text(alphabet="ab ()[]:1.\\", max_size=12))
def test_escaped_text_has_no_emphasis(text):
    assert parse_emphasis(escape_brackets(text)) == ([(text, 1.0)] if text else [])
    assert to_plain_text(escape_brackets(text)) == text.strip() and unescape_brackets(escape_brackets(text)) == text


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("a\nBREAK\nb", [[("a", 1.0)], [("b", 1.0)]]),
        ("(a BREAK b:1.2) c", [[("a", 1.2)], [("b", 1.2), (" c", 1.0)]]),
        ("a BREAK BREAK b", [[("a", 1.0)], [], [("b", 1.0)]]),
        ("BREAK a", [[], [("a", 1.0)]]),
        ("a BREAK", [[("a", 1.0)]]),
        ("a break, BREAKFAST", [[("a break, BREAKFAST", 1.0)]]),
        ("", [[]]),
    ],
)
def test_break_begins_a_section(prompt, sections):
    assert parse_sections(prompt) == sections


@pytest.mark.parametrize(
    ("prompt", "part", "remedy"),
    [
        ("a cat AND a dog", "'AND' (joins prompts in A1111", "write and"),
        ("a [cat:dog:0.5] here", "'[cat:dog:0.5]' (changes the prompt at a step", "write one of the texts"),
        ("a [cat:10]", "'[cat:10]' (changes", "or (word:0.9) for a weight"),
        ("a [cat::.5]", "'[cat::.5]' (changes", "write one"),
        ("a [cat|dog]", "'[cat|dog]' (alternates", "write one of the words"),
        ("a {red|blue} hat", "'{red|blue}' (chooses at random", "write one of the words"),
        ("a __hair/colour__ hat", "'__hair/colour__' (a wildcard file", "write one of its words"),
        ("photo, embedding:easyneg", "'embedding:easyneg' (a textual inversion in ComfyUI", "set cast.NAME.concept"),
        ("(embedding:easyneg:1.2)", "'embedding:easyneg:1.2' (a textual", "write its word"),
        ("<embed:easyneg>", "'<embed:easyneg>' (a network or command", "set cast.NAME.concept"),
        ("<lora:ana:0.8> a woman", "'<lora:ana:0.8>' (a network", "style for a style"),
        ("<fromto[0.5]:cat,dog>", "'<fromto[0.5]:cat,dog>' (a network or command", ""),
        ("1.2::cat:: here", "'1.2::' (a weight in NovelAI)", "write (words:1.2)"),
        ("a (cat)1.3", "')1.3' (a weight or function of compel", "write (words:1.2)"),
        ("a (cat)++ here", "')++' (a weight", ""),
        ("a (cat)-", "')-' (a weight", ""),
        ('("a", "b").blend(1, 1)', "').blend(' (a weight or function", ""),
        ("a (cat:1,2)", "':1,2)' (a weight with a decimal comma)", "write a point"),
    ],
)
def test_syntax_of_other_programs_is_refused_by_name(prompt, part, remedy):
    problem = find_foreign_syntax(prompt)
    assert problem is not None and problem.startswith(part) and remedy in problem
    assert " is not supported; " in problem and "\n" not in problem
    with pytest.raises(SceneError) as caught:
        parse_sections(prompt)
    assert str(caught.value) == f"prompt {prompt!r}: {problem}"


@pytest.mark.parametrize(
    "prompt",
    [
        "salt and pepper, ANDREW, a | b, 16:9, at 10:30",
        r"\[cat|dog\], \[cat:0.5\]",
        "a <toy> here, 3 < 4 > 2",
        "(a cat), (cat)-eared, (a)., ((a:1.1):0.9)",
        "snake__case, std::vector, e_mail",
        "[a] [b]",
        "{{her}}",
        "a (cat:dog)",
    ],
)
def test_ordinary_text_is_not_refused(prompt):
    assert find_foreign_syntax(prompt) is None
    assert parse_sections(prompt)


def test_a_weight_that_is_a_typing_error_is_refused():
    assert parse_emphasis("(a:10)") == [("a", 10.0)]
    for prompt, weight in (("(a:12)", "12"), ("((a:5):5)", "25"), ("(a:-11)", "-11"), ("(a:" + "9" * 400 + ")", "inf")):
        with pytest.raises(SceneError, match=rf": weight {weight} of 'a'; want -10 to 10$"):
            parse_emphasis(prompt)


@pytest.mark.parametrize(
    ("prompt", "words", "notes"),
    [
        ("a (cat", (), ["the bracket '(' has no partner and is read as it stands"]),
        ("a cat:1.2)", (), ["the bracket ')' has no partner and is read as it stands"]),
        (r"a \(cat, (dog)", (), []),
        ("a <toy> and a <cat>", ("<toy>",), ["'<cat>' is no learned word of its concepts and is read as it stands; "]),
    ],
)
def test_what_is_probably_a_mistake_is_noted(prompt, words, notes):
    found = find_prompt_notes(prompt, frozenset(words))
    assert len(found) == len(notes) and all(f.startswith(n) for f, n in zip(found, notes, strict=True))


@pytest.mark.parametrize(
    "piece", ["(", "[", "<lora:", "[a:", "[a|", "{a|", "__a", "BREAK ", "1::", ")", "\\", "embedding:"]
)
def test_long_prompts_take_linear_time(piece):
    began = time.process_time()
    for _ in range(2):
        find_foreign_syntax(piece * 10_000)
        find_prompt_notes(piece * 10_000)
    assert time.process_time() - began < 3  # 0.1 s measured; a quadratic pattern takes minutes
