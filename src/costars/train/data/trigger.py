"""Rules for the trigger of a training: it becomes part of captions, which are plain text."""

from __future__ import annotations

from costars.errors import SceneError
from costars.scene.prompt_syntax import find_foreign_syntax, parse_sections, unescape_brackets


def find_trigger_problem(trigger: str) -> str | None:
    """Why a trigger, written as in a prompt, cannot be trained; None if it can."""
    if problem := find_foreign_syntax(trigger):
        return f"cannot be a trigger: {problem}"
    try:
        sections = parse_sections(trigger)
    except SceneError as error:
        return f"cannot be a trigger: {error}"
    if len(sections) != 1 or any(weight != 1 for _, weight in sections[0]):
        return (
            "has weights or BREAK, which training does not know; train the words alone and write the weight in a "
            "scene's trigger, or write brackets that belong to the words as \\( and \\)"
        )
    if not unescape_brackets(trigger).strip():
        return "is blank; write a word"
    return None
