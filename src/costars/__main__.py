"""python -m costars, and the command costars: Ctrl-C while the libraries are loaded is one line too."""

from __future__ import annotations

import sys

from costars.threads import bound_spinning


def main() -> None:
    """The command line."""
    try:
        bound_spinning()
        from costars.cli.main import main as command

        command()
    except KeyboardInterrupt:
        print("costars: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
