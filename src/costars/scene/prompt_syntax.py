"""The syntax of prompts: emphasis and chunks as in AUTOMATIC1111, and what of other programs is refused.

(word:1.2) sets a weight, (word) multiplies it by 1.1 and [word] divides it by 1.1. Brackets nest, and their weights
are multiplied, as in AUTOMATIC1111; in ComfyUI the inner number alone counts, and [word] is literal. \\( \\) \\[ \\]
\\\\ are literal characters. A bracket without its partner is literal, as in ComfyUI; AUTOMATIC1111 applies an unclosed
one to the rest of the prompt. BREAK begins a new chunk, also within brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from costars.errors import SceneError

BRACKET_FACTOR = 1.1  # of one pair of brackets, in AUTOMATIC1111 and ComfyUI
MAX_WEIGHT = 10.0  # ours: a larger weight is a typing error such as (word:12)
SHOWN = 60  # characters of a prompt in a message
_BREAK = re.compile(r"(?:(?<!\s)\s++)?\bBREAK\b\s*+")  # linear time for a text of many spaces
# Possessive: linear time for a text of many digits or spaces.
_PIECE = re.compile(r"\\[()\[\]\\]|\(|\[|:\s*+([+-]?(?:\d++(?:\.\d++)?|\.\d++))\s*+\)|\)|\]|[^\\()\[\]:]++|:|\\")
_ESCAPED = re.compile(r"\\([()\[\]\\])")
_LEARNED = re.compile(r"<[\w-]{1,64}>")

Weighted = tuple[str, float]  # a piece of text and its weight


@dataclass(frozen=True)
class ForeignSyntax:
    """Syntax of other programs that would be read as plain words: its pattern, its meaning, and what to write."""

    pattern: re.Pattern[str]
    meaning: str
    remedy: str


# Each pattern reads a bounded number of characters from where it starts, so that a long prompt takes linear time.
FOREIGN = (
    ForeignSyntax(
        re.compile(r"<\w{1,30}(?:\[[^\[\]<>]{0,100}\])?:[^<>]{0,300}>"),
        "a network or command in A1111 and SwarmUI",
        "set cast.NAME.concept for a character or a textual inversion, style for a style",
    ),
    ForeignSyntax(
        re.compile(r"\bembedding:\s*[^\s,()]{1,100}"),
        "a textual inversion in ComfyUI",
        "set cast.NAME.concept (or style) to its file, and write its word",
    ),
    ForeignSyntax(
        re.compile(r"\bAND\b"),
        "joins prompts in A1111 (composable diffusion)",
        "write and, or give the member a prompt of its own (cast.NAME.prompt)",
    ),
    ForeignSyntax(
        re.compile(r"\[[^\[\]]{0,500}?:\s*\d*\.?\d+\s*\]"),
        "changes the prompt at a step in A1111",
        "write one of the texts, or (word:0.9) for a weight",
    ),
    ForeignSyntax(
        re.compile(r"\[[^\[\]|]{0,500}\|[^\[\]]{0,500}\]"),
        "alternates words by step in A1111",
        "write one of the words",
    ),
    ForeignSyntax(
        re.compile(r"\{[^{}|]{0,500}\|[^{}]{0,500}\}"), "chooses at random in Dynamic Prompts", "write one of the words"
    ),
    ForeignSyntax(
        re.compile(r"(?<!\w)__[\w*./-]{1,100}?__(?!\w)"),
        "a wildcard file in Dynamic Prompts",
        "write one of its words",
    ),
    ForeignSyntax(re.compile(r"(?<![\w.])-?\d{1,3}(?:\.\d{1,6})?::"), "a weight in NovelAI", "write (words:1.2)"),
    ForeignSyntax(
        re.compile(r"\)(?:\++|-+(?=[\s,.;)]|$)|\d{0,3}\.\d{1,6}|\.(?:blend|swap|and|or)\()"),
        "a weight or function of compel in InvokeAI",
        "write (words:1.2)",
    ),
    ForeignSyntax(
        re.compile(r":\s*[+-]?\d{1,3},\d{1,6}\s*\)"), "a weight with a decimal comma", "write a point, (words:1.2)"
    ),
)


def find_foreign_syntax(prompt: str) -> str | None:
    """What of a prompt is refused, with its meaning and what to write instead; None if nothing is."""
    text = _ESCAPED.sub("  ", prompt)  # of the same length
    for syntax in FOREIGN:
        if found := syntax.pattern.search(text):
            part = prompt[found.start() : found.end()][:SHOWN]
            return f"{part!r} ({syntax.meaning}) is not supported; {syntax.remedy}"
    return None


def parse_sections(prompt: str) -> list[list[Weighted]]:
    """The prompt as weighted text, by section: BREAK begins a new one, as in A1111.

    Raises SceneError for a weight beyond MAX_WEIGHT and for syntax of other programs that is not supported.
    """
    if problem := find_foreign_syntax(prompt):
        raise SceneError(f"prompt {_shorten(prompt)!r}: {problem}")
    sections: list[list[Weighted]] = [[]]
    for text, weight in _parse_pieces(prompt).parts:
        if text is None:
            sections.append([])
            continue
        if abs(weight) > MAX_WEIGHT:
            raise SceneError(
                f"prompt {_shorten(prompt)!r}: weight {weight:g} of {text[:SHOWN]!r}; want {-MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}"
            )
        same = bool(sections[-1]) and sections[-1][-1][1] == weight
        before = sections[-1].pop()[0] if same else ""
        sections[-1].append((before + text, weight))
    return sections[:-1] if len(sections) > 1 and not sections[-1] else sections  # A1111 ignores a BREAK at the end


def parse_emphasis(prompt: str) -> list[Weighted]:
    """The prompt as weighted text, without its sections."""
    return [part for section in parse_sections(prompt) for part in section]


def escape_brackets(text: str) -> str:
    """The text with brackets escaped, so that they are read as literal brackets."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def unescape_brackets(text: str) -> str:
    """The text with escaped brackets as plain ones; nothing else of it is read."""
    return _ESCAPED.sub(r"\1", text)


def to_plain_text(prompt: str) -> str:
    """The words of a prompt, without emphasis and escapes."""
    return " ".join("".join(text for text, _ in section) for section in parse_sections(prompt)).strip()


def find_prompt_notes(prompt: str, learned: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """What of a prompt is probably not read as it was meant; learned are the learned words that it can use."""
    notes = [f"the bracket {bracket!r} has no partner and is read as it stands" for bracket in _find_unpaired(prompt)]
    for word in dict.fromkeys(_LEARNED.findall(prompt)):
        if word not in learned:
            notes.append(
                f"{word!r} is no learned word of its concepts and is read as it stands; cast the concept that has "
                "it, or write it without < and >"
            )
    return notes


@dataclass(frozen=True)
class _Pieces:
    """parts in order, of which None begins a section; unpaired brackets stay in them as text."""

    parts: list[tuple[str | None, float]]
    unpaired: list[str]


def _parse_pieces(prompt: str) -> _Pieces:
    matches = list(_PIECE.finditer(prompt))
    factors, closing, unpaired = _pair_brackets(matches)
    parts: list[tuple[str | None, float]] = []
    weights = [1.0]
    for i, match in enumerate(matches):
        piece = match.group(0)
        if i in factors:
            weights.append(weights[-1] * factors[i])
        elif i in closing:
            weights.pop()
        elif len(piece) == 2 and piece[0] == "\\":
            parts.append((piece[1:], weights[-1]))
        else:
            for j, text in enumerate(_BREAK.split(piece)):
                parts += [(None, 1.0)] if j else []
                parts += [(text, weights[-1])] if text else []
    return _Pieces(parts, unpaired)


def _pair_brackets(matches: list[re.Match[str]]) -> tuple[dict[int, float], set[int], list[str]]:
    """{index of an opening bracket: factor of its pair}, indices of the closing ones, and unpaired brackets."""
    factors, closing, unpaired = dict[int, float](), set[int](), list[str]()
    open_at: list[int] = []
    for i, match in enumerate(matches):
        piece, weight = match.group(0), match.group(1)
        opening = matches[open_at[-1]].group(0) if open_at else ""
        if piece in ("(", "["):
            open_at.append(i)
        elif opening == "(" and (weight is not None or piece == ")"):
            factors[open_at.pop()] = BRACKET_FACTOR if weight is None else float(weight)
            closing.add(i)
        elif opening == "[" and piece == "]":
            factors[open_at.pop()] = 1 / BRACKET_FACTOR
            closing.add(i)
        elif piece[0] != "\\" and piece[-1] in ")]":
            unpaired.append(piece[-1])
    return factors, closing, [matches[i].group(0) for i in open_at] + unpaired


def _find_unpaired(prompt: str) -> list[str]:
    return list(dict.fromkeys(_parse_pieces(prompt).unpaired))


def _shorten(prompt: str) -> str:
    return prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
