"""A plan, a picture or a training as a value: what a command line, a server or a remote worker runs."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from costars.errors import SceneError
from costars.files.folder_claim import check_no_earlier_run, claim_folder
from costars.records.layout_inputs import with_scene
from costars.records.plan import read_plan, write_plan
from costars.records.png_metadata import write_failure, write_picture
from costars.retry import retry_seeds
from costars.scene.scene import Scene
from costars.studio import Studio
from costars.train.config import TrainConfig
from costars.train.loop import Progress
from costars.train.output_files import TrainingFiles, check_files, hold_work_folder, locate_files
from costars.train.results import TrainingResult
from costars.train.session import Message, run_session
from costars.types import Picture, Plan, RegionError, Step


@dataclass(frozen=True, kw_only=True)
class PlanJob:
    """Plan a scene into a folder; retries further seeds are tried while a member is missing.

    replace allows overwriting the plan of an earlier run.
    """

    scene: Scene
    out: Path
    retries: int = 0
    replace: bool = False


@dataclass(frozen=True, kw_only=True)
class RenderJob:
    """Render a scene into a folder: from its beginning, or from the plan in a folder.

    retries further seeds are tried while a member is missing; a plan has its seed. If the scene's count is not 1,
    each picture has a folder in out, named by its seed. replace allows overwriting pictures of an earlier run.
    """

    scene: Scene
    out: Path
    plan_folder: Path | None = None
    retries: int = 0
    replace: bool = False

    def folder(self, seed: int) -> Path:
        """The folder of the picture with this seed."""
        return self.out / str(seed) if self.scene.count > 1 else self.out


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train the concepts of a config and write them: into a folder or file, by default into the library.

    work is the folder of the checkpoint, sheets and reports; resume continues the checkpoint there; replace allows
    overwriting. A preview sheet is saved every sheet_every steps (0: only the last).
    """

    config: TrainConfig
    out: Path | None = None
    work: Path | None = None
    resume: bool = False
    replace: bool = False
    sheet_every: int = 0
    tensorboard: Path | None = None


def check_job(job: PlanJob | RenderJob) -> None:
    """Raises SceneError for a job that cannot write its result, or whose settings contradict each other."""
    scene = job.scene
    if isinstance(job, PlanJob):
        if scene.count > 1:
            raise SceneError(f"count {scene.count}: a plan is of one picture; set count=1 and choose its seed")
        check_no_earlier_run(job.out, "plan", replace=job.replace)
        return
    for seed in range(scene.seed, scene.seed + scene.count + job.retries if scene.count > 1 else scene.seed + 1):
        check_no_earlier_run(job.folder(seed), "picture", replace=job.replace)
    if job.plan_folder is not None and (job.retries or scene.count > 1):
        raise SceneError(f"{job.plan_folder}: a plan has its seed; render the scene to use --retries or --count")


def run_job(job: PlanJob | RenderJob, studio: Studio) -> Iterator[Step | Plan | Picture]:
    """Run a job and write its result; yields every step, and each plan or picture once it is written.

    The output folder exists from the start, and other runs cannot use it until the end. Raises RegionError where the
    layout does not show the cast; the layout and the regions that were found are written before.
    """
    check_job(job)
    with claim_folder(job.out):
        check_job(job)  # another run may have ended in between
        try:
            yield from _write_results(job, _steps(job, studio))
        except RegionError as error:
            folder = write_failure(error, job.out)
            seen = f"; see {folder}/layout.png and {folder}/masks/" if folder else ""
            raise RegionError(f"{error}{seen}", error.layout, error.regions) from None


def _write_results(
    job: PlanJob | RenderJob, events: Iterator[Step | Plan | Picture]
) -> Iterator[Step | Plan | Picture]:
    for event in events:
        if isinstance(event, Plan):
            write_plan(event, job.out, replace=job.replace)
        elif isinstance(event, Picture) and isinstance(job, RenderJob):
            write_picture(event, job.folder(event.scene.seed), replace=job.replace)
        yield event


def _steps(job: PlanJob | RenderJob, studio: Studio) -> Iterator[Step | Plan | Picture]:
    if isinstance(job, PlanJob):
        return retry_seeds(studio.plan_steps, job.scene, job.retries)
    if job.plan_folder is not None:
        return studio.render_steps(with_scene(read_plan(job.plan_folder), job.scene))
    return retry_seeds(studio.render_steps, job.scene, job.retries)


def run_training(job: TrainJob, studio: Studio) -> Generator[Progress | Message | TrainingResult, None, None]:
    """Run a training and write its files; yields steps, messages for the user and the result, which is written.

    Close the iterator to stop: the checkpoint is saved first. Raises TrainError for images or settings that cannot be
    trained, and for files that would be overwritten.
    """
    files = locate_files(job.config, studio.settings.library, job.out, job.work)
    with hold_work_folder(files):
        yield from _train(job, studio, files)


def _train(
    job: TrainJob, studio: Studio, files: TrainingFiles
) -> Generator[Progress | Message | TrainingResult, None, None]:
    check_files(files, resume=job.resume, replace=job.replace)
    if files.checkpoint.exists() and not job.resume:
        yield Message(f"{files.checkpoint}: checkpoint of an unfinished run is discarded")
    task = studio.prepare_training(job.config).checked()
    yield from (Message(line) for line in task.skipped)
    headline = f"training {job.config.recipe} in {task.recipe.precision} on {task.model.device}"
    session = run_session(
        task,
        files,
        resume=job.resume,
        replace=job.replace,
        sheet_every=job.sheet_every,
        tensorboard=job.tensorboard,
    )
    with closing(session):
        for event in session:
            if headline and isinstance(event, Progress):  # not before an error of the first step
                yield Message(headline)
                headline = ""
            yield event
