"""costars train: a few pictures to a concept that scenes can cast."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from costars.errors import TrainError
from costars.settings import Device, Dtype

if TYPE_CHECKING:
    from PIL.Image import Image

    from costars.studio import Lesson, Studio
    from costars.train.config import TrainSpec
    from costars.train.em.report import MaskHistory
    from costars.train.loop import Taught

console = Console(stderr=True)
CHECKPOINT = "checkpoint.safetensors"
TOLD = 10  # lines of each stage where no bar can be drawn, as in a log
FIRST = int(os.environ.get("RANK", "0")) == 0  # of several processes the first alone writes and speaks


def train(
    what: Annotated[str, typer.Argument(metavar="RECIPE|SPEC.yaml", help="lora, dreambooth, ..., or a file")],
    images: Annotated[Path | None, typer.Option(help="folder of pictures, captions and masks beside them")] = None,
    name: Annotated[str | None, typer.Option(help="what scenes will call it")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="what it is, e.g. woman")] = None,
    concept: Annotated[list[str], typer.Option(help="NAME=CLASS, one for each of several in the same pictures")] = [],  # noqa: B006
    background: Annotated[str | None, typer.Option(help="NAME=CLASS of what is around them, for em")] = None,
    class_images: Annotated[Path | None, typer.Option(help="folder of its class, in place of drawn pictures")] = None,
    trigger: Annotated[str | None, typer.Option(help="the word it is taught by, default: its name")] = None,
    model: Annotated[str | None, typer.Option(help="builtin, a folder, a file or a hub id")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="NAME.safetensors, default: your library")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value of the recipe, e.g. steps=500")] = [],  # noqa: B006
    caption: Annotated[str | None, typer.Option(help="a model that captions pictures without a caption")] = None,
    add_trigger: Annotated[bool, typer.Option("--add-trigger", help="put the trigger into captions")] = False,
    work: Annotated[Path | None, typer.Option(help="folder of checkpoint and sheets, default: in your data")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of one of its name")] = False,
    sheet_every: Annotated[int, typer.Option(min=0, help="steps between sample sheets, 0: at the end")] = 0,
    tensorboard: Annotated[Path | None, typer.Option(help="folder to write the loss for TensorBoard into")] = None,
    device: Annotated[Device | None, typer.Option(help="where to run")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="number format of what is not trained")] = None,
) -> None:
    """Teach a concept from a few pictures: lora, dreambooth, textual-inversion, custom-diffusion, ed-lora or em.

    em teaches several at once from pictures that show them together, and finds out where each is.
    """
    from torch import OutOfMemoryError

    from costars.files.output_folder import check_writable
    from costars.studio import open_studio
    from costars.train.config import parse_spec
    from costars.train.em.report import MaskHistory, load_history
    from costars.train.loop import precision_of

    path = Path(what)
    base = path.parent if path.suffix else None
    given: dict[str, Any] = {"name": name, "class_name": class_name, "trigger": trigger, "model": _here(model, base)}
    given |= {"images": images and str(images.absolute()), "caption": _here(caption, base)}
    given |= {"class_images": class_images and str(class_images.absolute()), "add_trigger": add_trigger or None}
    if background and not concept:
        raise TrainError(
            "--background: of whom? it is of em: give --concept NAME=CLASS in place of --name and --class, or write it "
            "into the .yaml"
        )
    around = [_named(background, "--background", "meadow=park") | {"background": True}] if background else []
    given |= {"concepts": [_named(each, "--concept", "ana=woman") for each in concept] + around or None}
    said = {key: value for key, value in given.items() if value is not None}
    data: dict[str, Any] = _read(path) if path.suffix in (".yaml", ".yml") else {"recipe": what}
    settings = (data.get("settings") or {}) | _settings(set_)
    spec = parse_spec(data | said | {"settings": settings}, what)
    studio = open_studio(device, dtype)
    targets = _targets(spec, out, studio, replace)
    folder = work or studio.settings.library.parent / "training" / "-".join(s.name for s in spec.concepts)
    check_writable(folder, "--work")
    kept = folder / CHECKPOINT
    if kept.exists() and not (resume or replace):
        raise TrainError(f"{kept}: a run was stopped there; go on with --resume, or begin anew with --replace")
    if resume and not kept.exists():
        raise TrainError(f"--resume: no run was stopped in {folder}; leave it out to begin one")
    if kept.exists() and not resume:
        _say(f"{kept}: the run that was stopped there is begun anew")
    with console.status("loading"):
        lesson = studio.lesson(spec, base)
    for line in lesson.skipped:
        _say(line)
    if FIRST:
        _say(f"training {spec.recipe} in {precision_of(lesson.recipe, lesson.model)} on {lesson.model.device}")
    story = load_history(lesson.teachings, kept) if resume else MaskHistory(lesson.teachings)
    try:
        taught = _taught(lesson, kept, resume, sheet_every if FIRST else 0, tensorboard if FIRST else None, story)
    except KeyboardInterrupt as stopped:
        for note in getattr(stopped, "__notes__", ()):
            _say(note)
        if FIRST and kept.exists():
            _say(f"kept in {kept}; go on with --resume{' --replace' if replace else ''}")
        raise
    except (MemoryError, OutOfMemoryError) as error:
        raise TrainError(
            f"out of memory ({error}); --set a smaller batch_size (with gradient_accumulation_steps), "
            "gradient_checkpointing=true, a smaller rank or em.rows_per_call, or free device memory and --resume"
        ) from None
    if FIRST:
        _finish(taught, targets, kept)
        _report(story, kept.parent)


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _here(name: str | None, base: Path | None) -> str | None:
    """A folder that the command line names is beside where one works, not beside a spec that lies elsewhere."""
    path = Path(name or "").expanduser()
    return str(path.absolute()) if name and base and name != "builtin" and path.exists() else name


def _named(said: str, option: str, example: str) -> dict[str, Any]:
    name, equals, class_name = said.partition("=")
    if not equals:
        raise TrainError(f"{option} {said!r}: want NAME=CLASS, e.g. {example}")
    return {"name": name, "class_name": class_name}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise TrainError(f"{path}: cannot be read ({error.strerror}); name a recipe or a .yaml file") from None
    except yaml.YAMLError as error:
        raise TrainError(f"{path}: is no YAML ({' '.join(str(error).split())}); mend it there") from None
    if not isinstance(data, dict) or not isinstance(data.get("settings") or {}, dict):
        wrong = f"settings: {data['settings']!r}" if isinstance(data, dict) else type(data).__name__
        raise TrainError(f"{path}: holds {wrong}, want keys and values: recipe, name, class and images")
    return data


def _settings(said: list[str]) -> dict[str, Any]:
    settings = {}
    for each in said:
        key, equals, value = each.partition("=")
        if not (key and equals):
            raise TrainError(f"--set {each!r}: want key=value, e.g. steps=500")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise TrainError(f"--set {each!r}: {value!r} is no number, word or true; e.g. steps=500") from None
    return settings


def _targets(spec: TrainSpec, out: Path | None, studio: Studio, replace: bool) -> list[Path]:
    """Where each concept goes; found out before anything is trained."""
    from costars.files.output_folder import check_writable

    names = [subject.name for subject in spec.concepts]
    if out is not None and len(names) == 1:
        targets = [out if out.suffix == ".safetensors" else out / f"{names[0]}.safetensors"]
    else:
        targets = [(out or studio.settings.library) / f"{name}.safetensors" for name in names]
    for target in targets:
        check_writable(target.parent, "--out")
        if target.is_dir():
            raise TrainError(f"{target}: is a folder; choose another --name or --out")
        if target.exists() and not replace:
            raise TrainError(f"{target}: is there already; choose another --name or --out, or --replace it")
    return targets


def _taught(
    lesson: Lesson, kept: Path, resume: bool, sheet_every: int, tensorboard: Path | None, story: MaskHistory
) -> Taught:
    from costars.train.em.report import keep
    from costars.train.loop import TEACHING, Progress, Taught
    from costars.train.preview import preview

    write, scalars = _scalars(tensorboard), tensorboard is not None
    columns = (TextColumn("{task.description:<15}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    said = TextColumn("{task.fields[said]}")
    with (
        closing(lesson.steps(kept, resume)) as events,
        Bars(*columns, said, console=console, disable=not (FIRST and console.is_terminal)) as bars,
    ):
        tasks: dict[str, Any] = {}
        before, smooth = time.monotonic(), 0.0
        for event in events:
            if isinstance(event, Taught):
                return event
            assert isinstance(event, Progress)
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.of, said="")
            if event.note:
                _say(event.note)
            now = time.monotonic()
            smooth, before = (0.9 * smooth + 0.1 * (now - before) if smooth else now - before), now
            line = f"loss {event.loss:.4f}, {1 / max(smooth, 1e-9):.1f} steps/s" if event.stage == TEACHING else ""
            bars.update(tasks[event.stage], completed=event.step, said=line)
            if FIRST and bars.disable and event.step % -(-event.of // TOLD) == 0:
                _say(f"{event.stage} {event.step}/{event.of} {line}".rstrip())
            if event.stage == TEACHING:
                scalars = scalars and _tried(f"--tensorboard {tensorboard}", write, event.step, event.loss)
                if story.record(event.step - 1, event.masks) and FIRST:
                    _tried(f"the report in {kept.parent}", keep, story, kept.parent)
                if (FIRST and event.step == event.of) or (sheet_every and event.step % sheet_every == 0):
                    sheet = kept.parent / f"sheet-{event.step:06d}.png"
                    shown = preview(lesson.model, lesson.teachings, event.learned)
                    if _tried(str(sheet), _save_sheet, shown, sheet) and event.step == event.of:
                        _say(f"what the model draws now: {sheet}")
    raise RuntimeError("the iterator ended without what was taught")


def _tried(what: str, write: Callable[..., object], *told: object) -> bool:
    """Whether it was written; a full disk must not take away what is taught."""
    try:
        write(*told)
    except OSError as error:
        _say(f"{what}: cannot be written ({error.strerror or error}); the teaching goes on without it")
        return False
    return True


def _save_sheet(shown: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.save(path)


def _scalars(folder: Path | None) -> Callable[[int, float], None]:
    """What writes a step's loss for TensorBoard, or does nothing."""
    if folder is None:
        return lambda step, loss: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainError("--tensorboard: needs the tensorboard package; pip install 'costars[train]'") from None
    writer = SummaryWriter(str(folder))

    def write(step: int, loss: float) -> None:
        writer.add_scalar("loss", loss, step)
        writer.flush()

    return write


def _report(story: MaskHistory, folder: Path) -> None:
    from costars.train.em import report as em_report

    try:
        if story.rows:
            _tried(f"the report in {folder}", em_report.write, story, folder)
            _say(f"masks and report: {folder}")
    except TrainError as error:  # a plot that is not drawn takes no concept away
        _say(str(error))


def _finish(taught: Taught, targets: list[Path], kept: Path) -> None:
    from costars.train.results import write

    try:
        write(taught, targets)
    except OSError as error:
        raise TrainError(f"{error.filename or targets[0]}: {error.strerror or error}; {_left(targets, kept)}") from None
    kept.unlink(missing_ok=True)
    kept.with_suffix(".prior").unlink(missing_ok=True)
    for target, concept in zip(targets, taught.concepts, strict=True):
        _say(f"{concept.name}: {target.stat().st_size / 1e6:.1f} MB, called {concept.trigger!r} in prompts")
        typer.echo(target)


def _left(targets: list[Path], kept: Path) -> str:
    """What is left where the concepts cannot be written, and how to go on."""
    if not kept.exists():
        return "its checkpoint could not be written either; make room and begin anew"
    again = "--resume --replace" if any(target.exists() for target in targets) else "--resume"
    return f"the checkpoint {kept} stays; make room or choose another --out, and go on with {again}"
