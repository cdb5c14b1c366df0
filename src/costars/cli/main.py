"""The command line. Errors of costars are one line on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costars.cli import summary
from costars.cli.concepts import concepts_app
from costars.cli.console import console, parse_path, print_line, to_line, write_any_path
from costars.cli.train import train
from costars.errors import CostarsError, SceneError, ran_out_of_memory
from costars.scene.files import load_scene, with_settings
from costars.scene.numbers import RANDOM
from costars.scene.scene import Scene
from costars.settings import Device, Dtype, Memory, machine_settings

if TYPE_CHECKING:
    from costars.jobs import PlanJob, RenderJob
    from costars.studio import Studio

app = typer.Typer(
    no_args_is_help=True,
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
Seed = Annotated[
    str | None, typer.Option(metavar="INTEGER|random", help="seed of the layout, or random; default: the scene's")
]
Count = Annotated[
    int | None, typer.Option(min=1, help="number of pictures, each with a seed and a folder of its own in --out")
]
Retries = Annotated[
    int, typer.Option(min=0, max=1000, help="number of further seeds to try, in all, if a member is missing")
]
Replace = Annotated[bool, typer.Option("--replace", help="replace the result of an earlier run in --out")]
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
    replace: Replace = False,
    device: OnDevice = None,
    dtype: OfDtype = None,
    memory: InMemory = None,
    offline: Offline = None,
) -> None:
    """Draw the layout and find the region of each member. You can edit the masks, then render the folder."""
    scene = _change(load_scene(scene_file), set_, seed)
    from costars.jobs import PlanJob, check_job

    job = PlanJob(scene=scene, out=out, retries=retries, replace=replace)
    check_job(job)
    notes = summary.Notes()
    studio = _open_studio(device, dtype, notes, memory=memory, offline=offline)
    for planned in _run(job, studio):
        summary.print_plan(planned, job, notes)
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
    count: Count = None,
    retries: Retries = 0,
    replace: Replace = False,
    device: OnDevice = None,
    dtype: OfDtype = None,
    max_rows: MaxRows = None,
    memory: InMemory = None,
    offline: Offline = None,
) -> None:
    """Render a scene, a plan (edited or not), or a picture again."""
    from costars.jobs import RenderJob, check_job

    is_plan = source.is_dir()
    if is_plan and (seed is not None or count is not None or retries):
        raise SceneError(f"{source}: a plan has its seed; render the scene to use --seed, --count or --retries")
    scene = _change(_load_plan_scene(source, out) if is_plan else load_scene(source), set_, seed, count)
    plan_folder = source if is_plan else None
    job = RenderJob(scene=scene, out=out, plan_folder=plan_folder, retries=retries, replace=replace)
    check_job(job)
    if max_rows is None and source.suffix == ".png":
        max_rows = _recorded_max_rows(source)
    seeds, notes = list[int](), summary.Notes()
    studio = _open_studio(device, dtype, notes, max_rows=max_rows, memory=memory, offline=offline)
    for picture in _run(job, studio):
        seeds.append(picture.scene.seed)
        summary.print_picture(picture, job, notes)
        if source.suffix == ".png":
            summary.print_other_files(source, picture)
        typer.echo(job.folder(picture.scene.seed) / "picture.png")
    summary.print_seeds(seeds, job)


app.command()(train)


def _load_plan_scene(folder: Path, out: Path) -> Scene:
    from costars.files.output_folder import check_output_folder
    from costars.records.plan import read_plan

    check_output_folder(out, "picture")
    return read_plan(folder).scene


def _recorded_max_rows(picture: Path) -> int | None:
    """The rows per call that the picture was drawn with; None where this machine has a limit of its own."""
    from costars.records.png_metadata import read_max_rows

    return None if machine_settings().max_rows else read_max_rows(picture)


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


def _open_studio(device: Device | None, dtype: Dtype | None, notes: summary.Notes, **options: Any) -> Studio:
    if not console.is_terminal:
        print_line("loading the libraries")
    with console.status("loading the libraries"):
        from costars.studio import open_studio

        studio = open_studio(device, dtype, **options)
    studio.on_note = notes.print
    return studio


def _change(scene: Scene, settings: list[str], seed: str | None, count: int | None = None) -> Scene:
    """The scene with the changes of the command line; a random seed is printed."""
    scene = with_settings(scene, settings)
    if count is not None:
        scene = with_settings(scene, [f"count={count}"], "--count")
    if seed is not None:
        scene = with_settings(scene, [f"seed={seed}"], "--seed")
        if seed == RANDOM:
            print_line(f"seed {scene.seed}")
    return scene


def _run(job: PlanJob | RenderJob, studio: Studio) -> Iterator[Any]:
    """Run a job and show its progress; yields each plan or picture that was written."""
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
