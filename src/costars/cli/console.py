"""Messages for the user, on stderr; results go to stdout."""

from __future__ import annotations

from rich.console import Console

console = Console(stderr=True)


def print_line(line: str, style: str | None = None) -> None:
    """Print a line as it is: not wrapped, not highlighted, brackets not read as markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True, style=style)
