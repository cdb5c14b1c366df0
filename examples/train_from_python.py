"""Train a LoRA from Python and render it: python examples/train_from_python.py

The images are rendered here; replace the folder with your own.
"""

from __future__ import annotations

from pathlib import Path

from costars import Scene, TrainingResult, open_studio, parse_config, write_concepts, write_picture
from costars.train.loop import train
from costars_world.render.portraits import main as render_portraits


def main(out: Path = Path("out/train_from_python"), steps: int = 320, picture_steps: int = 50) -> None:
    """Train a new character and draw it beside one of the bundled ones."""
    images = out / "images"
    render_portraits(["--identity-seed", "7", "--class", "woman", "--count", "8", "--out", str(images)])
    config = parse_config(
        {
            "recipe": "lora",
            "name": "mia",
            "class": "woman",
            "images": str(images),
            "add_trigger": True,
            "settings": {"steps": steps, "lr_warmup_steps": min(10, steps)},
        }
    )
    studio = open_studio()
    for event in train(studio.prepare_training(config)):  # leave the loop to stop
        if isinstance(event, TrainingResult):
            write_concepts(event, [out / "mia.safetensors"])
        elif event.step % 20 == 0:
            print(f"{event.stage}: step {event.step} of {event.total}, loss {event.loss:.4f}")
    scene = Scene(
        prompt="{mia} to the left of {dan} on a beach",
        cast={"mia": str(out / "mia.safetensors"), "dan": "builtin/dan"},
        steps=picture_steps,
        method="multi_lora" if picture_steps < 10 else "two_stage",
    )
    write_picture(studio.render(scene), out / "picture")


if __name__ == "__main__":
    main()
