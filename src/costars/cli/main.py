"""The command line. Errors of ours are one line on stderr and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from costars.cli.concepts import concepts_app
from costars.cli.train import train
from costars.errors import CostarsError, RegionError, SceneError, ran_out_of_memory
from costars.scene.scene import Scene
from costars.scene.scene_files import load_scene, with_settings
from costars.settings import Device, Dtype, Memory

if TYPE_CHECKING:
    from costars.studio import Studio
    from costars.types import Picture, Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(concepts_app, name="concepts")
app.command()(train)
console = Console(stderr=True)
STOPPED = 130  # exit code of Ctrl-C


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"costars {version('costars')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print and stop")
    ] = False,
) -> None:
    """Put several of your own characters into one picture, and each stays itself."""


Out = Annotated[Path, typer.Option("--out", "-o", help="folder to write into")]
Settings = Annotated[list[str], typer.Option("--set", help="key=value, e.g. seed=3 or cast.ana.weight=0.8")]
Seed = Annotated[int | None, typer.Option(help="seed of the layout, default: the scene's")]
Retries = Annotated[int, typer.Option(min=0, help="try this many further seeds if someone is missing")]
OnDevice = Annotated[Device | None, typer.Option(help="where to run, default: the settings'")]
OfDtype = Annotated[Dtype | None, typer.Option(help="number format, default: the settings'")]
MaxRows = Annotated[int | None, typer.Option(min=0, help="most UNet rows in one call, 0: no bound")]
InMemory = Annotated[
    Memory | None, typer.Option(help="how much of the model stays on the device, default: the settings'")
]
Offline = Annotated[bool | None, typer.Option("--offline", help="fetch nothing from the hub", show_default=False)]


@app.command()
def plan(
    scene_file: Annotated[Path, typer.Argument(metavar="SCENE", help=".yaml, .toml, .json or a costars .png")],
    out: Out,
    set_: Settings = [],  # noqa: B006
    seed: Seed = None,
    retries: Retries = 0,
    device: OnDevice = None,
    dtype: OfDtype = None,
    memory: InMemory = None,
    offline: Offline = None,
) -> None:
    """Draw the layout and find who is where; edit the masks, then render the folder."""
    from costars.files.output_folder import check_folder
    from costars.records.plan import write_plan
    from costars.types import Plan

    scene = _changed(load_scene(scene_file), set_, seed)
    check_folder(out, "plan")
    studio = _studio(device, dtype, memory=memory, offline=offline)
    made = _run(studio, scene, scene_file.parent, retries, out, Plan)
    write_plan(made, out, scene_file.parent)
    order = sorted(made.regions, key=lambda name: made.regions[name].depth)
    found = ", ".join(f"{name} ({made.regions[name].class_name}, {made.regions[name].area:.0%})" for name in order)
    console.print(f"from front to back: {found}; render {out} to finish it", highlight=False, soft_wrap=True)
    typer.echo(out / "plan.json")


@app.command()
def render(
    source: Annotated[Path, typer.Argument(metavar="SCENE|PLAN_DIR|PICTURE.png")],
    out: Out,
    set_: Settings = [],  # noqa: B006
    seed: Seed = None,
    retries: Retries = 0,
    device: OnDevice = None,
    dtype: OfDtype = None,
    max_rows: MaxRows = None,
    memory: InMemory = None,
    offline: Offline = None,
) -> None:
    """Render a scene, a plan that you may have edited, or a picture again."""
    from costars.files.output_folder import check_folder
    from costars.records.layout_inputs import with_scene
    from costars.records.plan import read_plan
    from costars.records.png_metadata import write_picture
    from costars.types import Picture

    check_folder(out, "picture")
    what: Scene | Plan
    if source.is_dir():
        if seed is not None or retries:
            raise SceneError(f"{source}: a plan has its seed; render the scene to use --seed or --retries")
        before = read_plan(source)
        what = with_scene(before, with_settings(before.scene, set_))
    else:
        what = _changed(load_scene(source), set_, seed)
    studio = _studio(device, dtype, max_rows=max_rows, memory=memory, offline=offline)
    several = isinstance(what, Scene) and what.count > 1
    if several and retries:
        raise SceneError("--retries would draw some seeds of a scene with a count twice; use one or the other")
    each: list[Scene | Plan] = [*what.each()] if isinstance(what, Scene) else [what]
    folders = [out / str(one.seed) if several and isinstance(one, Scene) else out for one in each]
    for folder in folders:
        check_folder(folder, "picture")
    for folder, one in zip(folders, each, strict=True):
        picture = _run(studio, one, source.parent, retries, folder, Picture)
        write_picture(picture, folder)
        _told(picture)
        typer.echo(folder / "picture.png")


def _told(picture: Picture) -> None:
    for note in picture.notes:
        console.print(note, highlight=False)
    for name in picture.lost:
        edited = picture.plan is not None and picture.plan.edited
        mend = "see to its mask and depth in the plan" if edited else "try another seed or --retries"
        console.print(f"{name} cannot be seen where the plan has {name}; {mend}", style="bold")
    rows, seconds = picture.rows, picture.seconds
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()) + f"; memory: {picture.memory}"
    spent += f", {picture.max_rows} rows at once"
    told = f"UNet rows: stage 1 {rows['stage1']}, stage 2 {rows['stage2']}; seconds: {spent}"
    console.print(told, highlight=False, soft_wrap=True)
    if picture.plan is not None and not rows["stage2"]:
        start = picture.scene.start
        console.print(
            f"no identity takes part: start {start} leaves no step for them; this is the layout", style="bold"
        )


@app.command()
def schema() -> None:
    """Print the JSON schema of a scene file."""
    typer.echo(json.dumps(Scene.model_json_schema(), indent=2))


@app.command()
def doctor() -> None:
    """Say what is installed, what this machine has, and what is missing."""
    from costars.cli.doctor import findings

    healthy = True
    for name, value, good in findings():
        healthy &= good
        typer.echo(f"{'ok  ' if good else 'MISS'} {name:<14} {value}")
    raise typer.Exit(0 if healthy else 1)


def _studio(device: Device | None, dtype: Dtype | None, **options: Any) -> Studio:
    with console.status("loading"):
        from costars.studio import open_studio

        return open_studio(device, dtype, **options)


def _changed(scene: Scene, settings: list[str], seed: int | None) -> Scene:
    scene = with_settings(scene, settings)
    return scene if seed is None else with_settings(scene, [f"seed={seed}"], origin="--seed")


def _run(studio: Studio, what: Any, base: Path, retries: int, out: Path, kind: type[Any]) -> Any:
    """Run the steps under one progress bar per stage; saves what was seen if someone is missing."""
    from costars.cli.progress import shown
    from costars.retry import retried
    from costars.types import Plan

    planning = kind is Plan
    if isinstance(what, Scene):
        events = retried(studio.plan_steps if planning else studio.render_steps, what, retries, base)
    else:
        events = studio.render_steps(what, base)
    try:
        made = shown(events, console, kind)
    except RegionError as error:
        from costars.records.png_metadata import write_failure

        seen = write_failure(error, out)
        raise RegionError(f"{error}; see {seen}/layout.png and {seen}/masks/") from None
    if isinstance(what, Scene) and made.scene.seed != what.seed:
        missed = ", ".join(map(str, range(what.seed, made.scene.seed)))
        console.print(f"this is seed {made.scene.seed}: {missed} left someone out", highlight=False)
    return made


def main() -> None:
    """Entry point: our own errors and wrong options become one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if code == STOPPED:  # typer has caught Ctrl-C itself
            _said("stopped", STOPPED)
    except CostarsError as error:
        code = _said(str(error), 2)
    except typer.exceptions.TyperException as error:
        code = _said(f"{_words(error) or 'no command was given'}; see costars --help", 2)
    except OSError as error:
        code = _said(f"{error.filename or 'a file'}: {error.strerror or error}; check the disk and the folder", 2)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        code = _said(f"out of memory ({' '.join(str(error).split())[:200]}); use --max-rows 2 or a smaller size", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _said("stopped", STOPPED)
    sys.exit(code or 0)


def _words(error: typer.exceptions.TyperException) -> str:
    spoken = getattr(error, "format_message", None)
    return " ".join(str(spoken() if spoken else error).split()).replace("Value error, ", "").rstrip(".")


def _said(line: str, code: int) -> int:
    print(f"costars: {line}", file=sys.stderr)
    return code
