"""Entry point of the command costars and of python -m costars."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line on stderr, also while libraries are imported."""
    try:
        from costars.cli.main import main as command

        command()
    except KeyboardInterrupt:
        print("costars: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
