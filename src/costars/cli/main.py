"""The command line. Errors of costars are one line on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costars.cli.concepts import concepts_app
from costars.cli.console import console, parse_path, print_line, to_line, write_any_path
from costars.cli.train import train
from costars.errors import CostarsError, SceneError, ran_out_of_memory
from costars.scene.files import load_scene, with_settings
from costars.scene.scene import Scene
from costars.settings import Device, Dtype, Memory, machine_settings

if TYPE_CHECKING:
    from costars.jobs import PlanJob, RenderJob
    from costars.studio import Studio
    from costars.types import Picture, Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(concepts_app, name="concepts")
STOPPED = 130  # exit code of Ctrl-C
CLOSED_PIPE = 141  # of a program whose output nobody reads any more


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"costars {version('costars')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Put several of your own characters into one picture, each with its own identity."""


Out = Annotated[Path, typer.Option("--out", "-o", parser=parse_path, help="folder to write into")]
Settings = Annotated[list[str], typer.Option("--set", help="key=value, e.g. seed=3 or cast.ana.weight=0.8")]
Seed = Annotated[int | None, typer.Option(help="seed of the layout; default: the scene's")]
Retries = Annotated[int, typer.Option(min=0, help="number of further seeds to try if a member is missing")]
OnDevice = Annotated[Device | None, typer.Option(help="where to run; default: COSTARS_DEVICE, or auto")]
OfDtype = Annotated[Dtype | None, typer.Option(help="number format; default: COSTARS_DTYPE, or auto")]
MaxRows = Annotated[int | None, typer.Option(min=0, help="most UNet rows per call; 0: no limit")]
InMemory = Annotated[
    Memory | None, typer.Option(help="how much of the model stays on the device; default: COSTARS_MEMORY, or auto")
]
Offline = Annotated[bool | None, typer.Option("--offline", help="download nothing", show_default=False)]


@app.command()
def plan(
    scene_file: Annotated[
        Path, typer.Argument(parser=parse_path, metavar="SCENE", help=".yaml, .toml, .json or a costars .png")
    ],
    out: Out,
    set_: Settings = [],  # noqa: B006
    seed: Seed = None,
    retries: Retries = 0,
    device: OnDevice = None,
    dtype: OfDtype = None,
    memory: InMemory = None,
    offline: Offline = None,
) -> None:
    """Draw the layout and find the region of each member. You can edit the masks, then render the folder."""
    scene = _apply_settings(load_scene(scene_file), set_, seed, scene_file.parent)
    from costars.jobs import PlanJob, check_job

    job = PlanJob(scene=scene, out=out, retries=retries)
    check_job(job)
    planned: Plan = _run(job, _open_studio(device, dtype, memory=memory, offline=offline))
    _print_seed(planned.scene, scene)
    for note in planned.layout.notes:
        print_line(note)
    order = sorted(planned.regions, key=lambda name: planned.regions[name].depth)
    found = ", ".join(
        f"{name} ({planned.regions[name].class_name}, {planned.regions[name].area:.0%})" for name in order
    )
    print_line(f"from front to back: {found}; to finish it: costars render {out}")
    typer.echo(out / "plan.json")


@app.command()
def render(
    source: Annotated[
        Path,
        typer.Argument(parser=parse_path, metavar="SCENE|PLAN|PICTURE.png", help="scene file, plan folder or picture"),
    ],
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
    """Render a scene, a plan (edited or not), or a picture again."""
    jobs = _render_jobs(source, out, set_, seed, retries)
    from costars.jobs import check_job

    for job in jobs:
        check_job(job)
    if max_rows is None and source.suffix == ".png":
        max_rows = _recorded_max_rows(source)
    studio = _open_studio(device, dtype, max_rows=max_rows, memory=memory, offline=offline)
    for job in jobs:
        picture: Picture = _run(job, studio)
        if job.plan_folder is None:
            _print_seed(picture.scene, job.scene)
        _print_summary(picture)
        typer.echo(job.out / "picture.png")


app.command()(train)


def _render_jobs(source: Path, out: Path, settings: list[str], seed: int | None, retries: int) -> list[RenderJob]:
    """One job for each picture of the source; several are written into folders named by their seed."""
    if source.is_dir():
        if seed is not None or retries:
            raise SceneError(f"{source}: a plan has its seed; render the scene to use --seed or --retries")
        from costars.files.output_folder import check_output_folder
        from costars.jobs import RenderJob
        from costars.records.plan import read_plan

        check_output_folder(out, "picture")
        scene = with_settings(read_plan(source).scene, settings, source.parent)
        return [RenderJob(scene=scene, out=out, plan_folder=source)]
    scene = _apply_settings(load_scene(source), settings, seed, source.parent)
    if scene.count > 1 and retries:
        raise SceneError(
            f"--retries cannot be used with count {scene.count}: some seeds would be drawn twice; leave one of them out"
        )
    from costars.jobs import RenderJob

    scenes = scene.each()
    folders = [out / str(one.seed) if len(scenes) > 1 else out for one in scenes]
    for folder in folders if len(scenes) > 1 else ():
        if folder.is_symlink():
            raise SceneError(f"--out {out}: its {folder.name} is a link; remove it, or choose another folder")
    return [RenderJob(scene=one, out=folder, retries=retries) for one, folder in zip(scenes, folders, strict=True)]


def _recorded_max_rows(picture: Path) -> int | None:
    """The rows per call that the picture was drawn with; None where this machine has a limit of its own."""
    from costars.records.png_metadata import read_max_rows

    return None if machine_settings().max_rows else read_max_rows(picture)


def _print_seed(used: Scene, requested: Scene) -> None:
    if used.seed != requested.seed:
        failed = ", ".join(map(str, range(requested.seed, used.seed)))
        print_line(f"this is seed {used.seed}; seeds {failed} left a member out")


def _print_summary(picture: Picture) -> None:
    for note in picture.notes:
        print_line(note)
    for name in picture.lost:
        edited = picture.plan is not None and picture.plan.edited
        remedy = "check its mask and depth in the plan" if edited else "try another seed or --retries"
        print_line(f"{name} is not visible where the plan has {name}; {remedy}", style="bold")
    rows = picture.rows
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in picture.seconds.items())
    print_line(
        f"UNet rows: stage 1 {rows['stage1']}, stage 2 {rows['stage2']}, at most {picture.max_rows} per call; "
        f"seconds: {seconds}; memory: {picture.memory}"
    )
    if picture.plan is not None and not rows["stage2"]:
        print_line(
            f"no identity takes part: start {picture.scene.start} leaves no step for stage 2; this is the layout",
            style="bold",
        )


@app.command()
def schema() -> None:
    """Print the JSON schema of a scene file."""
    typer.echo(json.dumps(Scene.model_json_schema(), indent=2))


@app.command()
def doctor() -> None:
    """Print what is installed, what this machine has, and what is missing."""
    from costars.cli.doctor import check_machine

    healthy = True
    for finding in check_machine():
        healthy &= finding.ok
        typer.echo(f"{'ok  ' if finding.ok else 'MISS'} {finding.name:<14} {finding.value}")
    raise typer.Exit(0 if healthy else 1)


def _open_studio(device: Device | None, dtype: Dtype | None, **options: Any) -> Studio:
    with console.status("loading"):
        from costars.studio import open_studio

        return open_studio(device, dtype, **options)


def _apply_settings(scene: Scene, settings: list[str], seed: int | None, folder: Path) -> Scene:
    scene = with_settings(scene, settings, folder)
    return scene if seed is None else with_settings(scene, [f"seed={seed}"], origin="--seed")


def _run(job: PlanJob | RenderJob, studio: Studio) -> Any:
    """Run a job under one progress bar per stage; returns the plan or picture that was written."""
    from costars.cli.progress import show_progress
    from costars.jobs import run_job

    return show_progress(run_job(job, studio), console)


def main() -> None:
    """Run the command line; errors of costars and wrong options become one line and exit code 2."""
    write_any_path()
    try:
        code = app(standalone_mode=False)
        if code == STOPPED:  # typer caught Ctrl-C
            _fail("stopped", STOPPED)
    except CostarsError as error:
        code = _fail(str(error), 2)
    except typer.exceptions.TyperException as error:
        code = _fail(f"{_message(error) or 'no command was given'}; see costars --help", 2)
    except BrokenPipeError:  # the reader of stdout has ended, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED_PIPE
    except OSError as error:
        code = _fail(f"{error.filename or 'a file'}: {error.strerror or error}; check the disk and the folder", 2)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        code = _fail(f"out of memory ({' '.join(str(error).split())[:200]}); use --max-rows 2 or a smaller size", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("stopped", STOPPED)
    sys.exit(code or 0)


def _message(error: typer.exceptions.TyperException) -> str:
    formatted = getattr(error, "format_message", None)
    return " ".join(str(formatted() if formatted else error).split()).replace("Value error, ", "").rstrip(".")


def _fail(line: str, code: int) -> int:
    print(f"costars: {to_line(line)}", file=sys.stderr)
    return code
