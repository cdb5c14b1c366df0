"""costars train: train concepts from a few images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from costars.cli.console import console, parse_path, print_line
from costars.cli.progress import ProgressLines
from costars.errors import ReadError, TrainError
from costars.files.plain_data import parse_yaml, read_data
from costars.settings import Device, Dtype

if TYPE_CHECKING:
    from costars.train.config import TrainConfig
    from costars.train.loop import Progress
    from costars.train.output_files import TrainingFiles
    from costars.train.results import TrainingResult
    from costars.train.session import Message

IS_MAIN = int(os.environ.get("RANK", "0")) == 0  # only the first of several processes prints


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|CONFIG.yaml", help="lora, dreambooth, ..., or a file")],
    images: Annotated[
        Path | None, typer.Option(parser=parse_path, help="folder of images with captions and masks")
    ] = None,
    name: Annotated[str | None, typer.Option(help="name of the concept in scenes")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="class word, e.g. woman")] = None,
    concept: Annotated[list[str], typer.Option(help="NAME=CLASS, once for each concept in the same images")] = [],  # noqa: B006
    background: Annotated[str | None, typer.Option(help="NAME=CLASS of the images' background (em)")] = None,
    class_images: Annotated[
        Path | None, typer.Option(parser=parse_path, help="folder of class images; default: generated")
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="word for the concept in captions; default: its name")] = None,
    model: Annotated[str | None, typer.Option(help="builtin, a folder, a file or a hub id")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", parser=parse_path, help="NAME.safetensors; default: your library")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value of the recipe, e.g. steps=500")] = [],  # noqa: B006
    captioner: Annotated[str | None, typer.Option(help="model that captions images without a caption")] = None,
    add_trigger: Annotated[bool, typer.Option("--add-trigger", help="insert the trigger into captions")] = False,
    work: Annotated[
        Path | None,
        typer.Option(parser=parse_path, help="folder of checkpoint and previews; default: beside your library"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the checkpoint")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="replace a concept of the same name")] = False,
    sheet_every: Annotated[int, typer.Option(min=0, help="steps between preview sheets, 0: at the end")] = 0,
    tensorboard: Annotated[
        Path | None, typer.Option(parser=parse_path, help="folder for the loss curve of TensorBoard")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="device to train on")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="number format of frozen weights")] = None,
) -> None:
    """Train concepts from images with lora, dreambooth, textual-inversion, custom-diffusion, ed-lora or em.

    em trains several concepts at once from images that show them together, and finds their masks.
    """
    from costars.jobs import TrainJob, run_training
    from costars.studio import open_studio
    from costars.train.config import anchor_name
    from costars.train.output_files import locate_files

    options: dict[str, Any] = {
        "name": name,
        "class_name": class_name,
        "trigger": trigger,
        "model": anchor_name(model, Path()),
        "images": images and str(images.absolute()),
        "class_images": class_images and str(class_images.absolute()),
        "captioner": anchor_name(captioner, Path()),
        "add_trigger": add_trigger or None,
        "concepts": _parse_concepts(concept, background) or None,
    }
    config = _make_config(recipe, options, _parse_settings(set_))
    job = TrainJob(
        config=config,
        out=out,
        work=work,
        resume=resume,
        replace=replace,
        sheet_every=sheet_every,
        tensorboard=tensorboard,
    )
    studio = open_studio(device, dtype)
    files = locate_files(config, studio.settings.library, out, work)
    try:
        with closing(run_training(job, studio)) as session:
            _show(session, files)
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            print_line(note)
        if IS_MAIN and files.checkpoint.exists():
            print_line(f"saved {files.checkpoint}; continue with --resume{' --replace' if replace else ''}")
        raise


def _make_config(recipe: str, options: dict[str, Any], settings: dict[str, Any]) -> TrainConfig:
    """The config of a YAML file or of a recipe's name, changed by the options and settings that are given."""
    from costars.train.config import parse_config

    path = Path(recipe)
    data: dict[str, Any] = _read_yaml(path) if path.suffix in (".yaml", ".yml") else {"recipe": recipe}
    data |= {key: value for key, value in options.items() if value is not None}
    data["settings"] = (data.get("settings") or {}) | settings
    return parse_config(data, recipe, path.parent if path.suffix else Path())


def _show(session: Iterator[Progress | Message | TrainingResult], files: TrainingFiles) -> None:
    """Print progress, messages and results of a training."""
    from costars.train.loop import TRAINING
    from costars.train.results import TrainingResult
    from costars.train.session import Message

    columns = (TextColumn("{task.description:<15}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    text = TextColumn("{task.fields[text]}")
    is_drawn = IS_MAIN and console.is_terminal
    with ProgressBars(*columns, text, console=console, disable=not is_drawn) as bars:
        stages: dict[str, TaskID] = {}
        previous, seconds_per_step = time.monotonic(), 0.0
        lines = ProgressLines()
        for event in session:
            if isinstance(event, TrainingResult):
                _print_result(event, files)
            elif isinstance(event, Message):
                if IS_MAIN:
                    print_line(event.text)
            else:
                if event.stage not in stages:
                    stages[event.stage] = bars.add_task(event.stage, total=event.total, text="")
                if event.note:
                    print_line(event.note)
                elapsed, previous = time.monotonic() - previous, time.monotonic()
                seconds_per_step = 0.9 * seconds_per_step + 0.1 * elapsed if seconds_per_step else elapsed
                loss = f"loss {event.loss:.4f}" if event.stage == TRAINING else ""
                pace = f", {1 / max(seconds_per_step, 1e-9):.1f} steps/s" if loss else ""
                bars.update(stages[event.stage], completed=event.step, text=loss + pace)
                if IS_MAIN and not is_drawn:
                    lines.update(event.stage, event.step, event.total, loss)


def _print_result(result: TrainingResult, files: TrainingFiles) -> None:
    for path, concept in zip(files.concepts, result.concepts, strict=True) if IS_MAIN else ():
        print_line(f"{concept.name}: {path.stat().st_size / 1e6:.1f} MB, trigger {concept.trigger!r}")
        typer.echo(path)


def _parse_concepts(concepts: list[str], background: str | None) -> list[dict[str, Any]]:
    if background and not concepts:
        raise TrainError("--background needs the em recipe with --concept NAME=CLASS")
    parsed = [_parse_concept(text, "--concept", "ana=woman") for text in concepts]
    if background:
        parsed.append(_parse_concept(background, "--background", "meadow=park") | {"background": True})
    return parsed


def _parse_concept(text: str, option: str, example: str) -> dict[str, Any]:
    name, equals, class_name = text.partition("=")
    if not equals:
        raise TrainError(f"{option} {text!r}: want NAME=CLASS, e.g. {example}")
    return {"name": name, "class_name": class_name}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = read_data(path)
    except ReadError as error:
        raise TrainError(f"{path}: {error.reason}; {error.remedy}, or give a recipe") from None
    if not isinstance(data, dict) or not isinstance(data.get("settings") or {}, dict):
        found = f"settings: {data['settings']!r}" if isinstance(data, dict) else type(data).__name__
        raise TrainError(f"{path}: contains {found}, want keys and values: recipe, name, class and images")
    return data


def _parse_settings(options: list[str]) -> dict[str, Any]:
    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise TrainError(f"--set {option!r}: want key=value, e.g. steps=500")
        try:
            settings[key] = parse_yaml(value, "--set")
        except ReadError as error:
            raise TrainError(
                f"--set {option!r}: {value!r} is not a number, word or true ({error.reason}); e.g. steps=500"
            ) from None
    return settings
