"""A training run with its files: checkpoint, preview sheets, mask report, loss curve and concepts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from PIL import Image
from torch import OutOfMemoryError

from costars.errors import TrainError
from costars.files.atomic import atomic_file
from costars.train.em.report import MaskHistory, load_history, save_history, write_report
from costars.train.loop import TRAINING, Progress, train
from costars.train.output_files import TrainingFiles, describe_resumption
from costars.train.preview import make_preview
from costars.train.results import TrainingResult, write_concepts
from costars.train.task import TrainingTask
from costars.train.tensorboard import LossWriter, open_loss_writer


@dataclass(frozen=True)
class Message:
    """A line for the user."""

    text: str


def run_session(
    task: TrainingTask,
    files: TrainingFiles,
    *,
    resume: bool = False,
    replace: bool = True,
    sheet_every: int = 0,
    tensorboard: Path | None = None,
) -> Generator[Progress | Message | TrainingResult, None, None]:
    """Train a task and write its files; yields steps and messages, then the result, whose concepts are written.

    A preview sheet is saved every sheet_every steps (0: never) and after the last one. Of several processes only the
    first writes files. Without replace a concept that exists is kept, also one that another run has written meanwhile.
    A sheet, report or loss curve that cannot be written does not end the run. Raises TrainError as
    `train` does, if memory runs out, and if a concept cannot be written.
    """
    is_main = PartialState(cpu=task.model.device.type == "cpu").is_main_process
    outputs = _Outputs(
        task=task,
        files=files,
        replace=replace,
        history=load_history(task.subjects, files.checkpoint) if resume else MaskHistory(task.subjects),
        sheet_every=sheet_every,
        tensorboard=tensorboard,
        write_loss=open_loss_writer(tensorboard) if tensorboard is not None and is_main else None,
    )
    try:
        with closing(train(task, files.checkpoint, resume)) as events:
            for event in events:
                if isinstance(event, TrainingResult):
                    yield from outputs.finish(event) if is_main else (event,)
                    continue
                messages = outputs.after_step(event) if is_main else []
                yield event
                yield from (Message(text) for text in messages)
    except (MemoryError, OutOfMemoryError) as error:
        raise TrainError(
            f"out of memory ({error}); --set a smaller batch_size (with gradient_accumulation_steps), "
            "gradient_checkpointing=true, a smaller rank or em.rows_per_call, or free device memory and --resume"
        ) from None


@dataclass(kw_only=True)
class _Outputs:
    """Writes the files of a run as it proceeds."""

    task: TrainingTask
    files: TrainingFiles
    replace: bool
    history: MaskHistory
    sheet_every: int
    tensorboard: Path | None
    write_loss: LossWriter | None

    def after_step(self, progress: Progress) -> list[str]:
        """Write what is due after a step; returns messages."""
        if progress.stage != TRAINING:
            return []
        messages = []
        if self.write_loss is not None:
            problem = _try_write(f"--tensorboard {self.tensorboard}", self.write_loss, progress.step, progress.loss)
            if problem:
                self.write_loss = None
                messages.append(problem)
        if self.history.record(progress.step - 1, progress.masks):
            messages.append(
                _try_write(f"the report in {self.files.folder}", save_history, self.history, self.files.folder)
            )
        is_last = progress.step == progress.total
        if is_last or (self.sheet_every and progress.step % self.sheet_every == 0):
            messages += self._save_sheet(progress, is_last)
        return [message for message in messages if message]

    def _save_sheet(self, progress: Progress, is_last: bool) -> list[str]:
        path, sheet = self.files.sheet(progress.step), make_preview(self.task, progress.learned)
        problem = _try_write(str(path), save_image, sheet, path)
        return [problem] if problem else [f"preview: {path}"] if is_last else []

    def finish(self, result: TrainingResult) -> Iterator[Message | TrainingResult]:
        """Write the concepts and the report, and remove the checkpoint."""
        try:
            write_concepts(result, self.files.concepts, replace=self.replace)
        except OSError as error:
            path, reason = error.filename or self.files.concepts[0], error.strerror or error
            raise TrainError(f"{path}: {reason}; {describe_resumption(self.files)}") from None
        self.files.remove_checkpoint()
        yield result
        if self.history.rows:
            yield from (Message(text) for text in self._write_report() if text)

    def _write_report(self) -> Iterator[str]:
        folder = self.files.folder
        try:
            yield _try_write(f"the report in {folder}", write_report, self.history, folder)
            yield f"masks and report: {folder}"
        except TrainError as error:  # matplotlib is missing: the rest is written
            yield str(error)


def save_image(image: Image.Image, path: Path) -> None:
    """Save an image atomically, creating its folder."""
    with atomic_file(path) as partial:
        image.save(partial)


def _try_write(name: str, write: Callable[..., object], *args: object) -> str:
    """Write a file that training can do without; returns why it failed, or an empty string."""
    try:
        write(*args)
    except OSError as error:
        return f"{name}: cannot be written ({error.strerror or error}); training continues without it"
    return ""
