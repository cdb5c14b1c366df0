"""Entry point of the command costars and of python -m costars."""

from __future__ import annotations

import signal
import sys
from types import FrameType

STOPPED, TERMINATED = 130, 143  # exit codes of Ctrl-C (128 + SIGINT) and of SIGTERM (128 + 15)


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM are one line on stderr, also while libraries are imported.

    SIGTERM, which kill, systemd, Docker and batch systems send, ends a command as Ctrl-C does: a training saves its
    checkpoint, and nothing is left half written.
    """
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        from costars.cli.main import main as command

        command()
    except KeyboardInterrupt:
        print("costars: stopped", file=sys.stderr)
        sys.exit(TERMINATED if terminated else STOPPED)
    except SystemExit as stopped:
        if terminated and stopped.code == STOPPED:
            sys.exit(TERMINATED)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    main()
