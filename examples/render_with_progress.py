"""Render a scene with a line per step, and cancel it if it takes too long: python examples/render_with_progress.py"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from costars import Picture, Scene, Step, open_studio, write_picture


def main(out: Path = Path("out/progress"), steps: int = 50, most_seconds: float = 600.0) -> Picture | None:
    """Return the picture, or None if it was cancelled."""
    scene = Scene(
        prompt="{eve} in front of {bo} in a park",
        cast={"eve": "builtin/eve", "bo": "builtin/bo"},
        steps=steps,
        seed=1,
    )
    studio = open_studio()
    deadline = time.monotonic() + most_seconds
    with closing(studio.render_steps(scene)) as events:  # closing the iterator restores the model
        for event in events:
            if isinstance(event, Step):
                print(f"{event.stage}: step {event.index + 1} of {event.of}, {event.rows} UNet rows")
            elif isinstance(event, Picture):
                write_picture(event, out)
                return event
            if time.monotonic() > deadline:
                print("cancelled")
                break
    return None


if __name__ == "__main__":
    main()
