"""Render with a line per step and a preview, or cancel: python examples/render_with_progress.py"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from costars import Picture, Scene, Step, draw_preview, open_studio, write_picture

PREVIEW_SECONDS = 2.0


def main(out: Path = Path("out/progress"), steps: int | None = None, most_seconds: float = 600.0) -> Picture | None:
    """Return the picture, or None if it was cancelled."""
    scene = Scene(
        prompt="{eve} in front of {bo} in a park",
        cast={"eve": "builtin/eve", "bo": "builtin/bo"},
        steps=steps,
        seed=1,
    )
    studio = open_studio()
    studio.on_note = print  # notes on the scene, before it is drawn
    out.mkdir(parents=True, exist_ok=True)
    began = shown = time.monotonic()
    with closing(studio.render_steps(scene)) as events:  # closing the iterator restores the model
        for event in events:
            now = time.monotonic()
            if isinstance(event, Step):
                print(f"{event.stage}: step {event.index + 1} of {event.of}, {event.rows} UNet rows")
                if now - shown >= PREVIEW_SECONDS or event.index + 1 == event.of:
                    preview = draw_preview(event, studio.model(scene.model))  # a pixel per latent cell
                    preview.resize((256, 256)).save(out / "preview.png")
                    shown = now
            elif isinstance(event, Picture):
                write_picture(event, out, replace=True)
                return event
            if now - began > most_seconds:
                print("cancelled")
                break
    return None


if __name__ == "__main__":
    main()
