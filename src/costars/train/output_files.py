"""The files of a training run, checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from costars.errors import TrainError
from costars.files.output_folder import check_writable
from costars.files.temporary import claimed_folder, new_folder
from costars.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """concepts are the .safetensors files to write; folder holds the checkpoint, preview sheets and the mask report."""

    concepts: tuple[Path, ...]
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of an unfinished run."""
        return self.folder / "checkpoint.safetensors"

    @property
    def class_latents(self) -> Path:
        """Generated class images of an unfinished run."""
        return self.checkpoint.with_suffix(".prior")

    def sheet(self, step: int) -> Path:
        """The preview sheet of a step."""
        return self.folder / f"sheet-{step:06d}.png"

    def remove_checkpoint(self) -> None:
        """Remove what a finished run does not need any more."""
        self.checkpoint.unlink(missing_ok=True)
        self.class_latents.unlink(missing_ok=True)


def locate_files(
    config: TrainConfig, library: Path, out: Path | None = None, folder: Path | None = None
) -> TrainingFiles:
    """The files of a run. out is a folder or, for one concept, a .safetensors file; default: the library.

    folder defaults to a folder named after the concepts next to the library.
    """
    if out is not None and len(config.names) == 1 and out.suffix == ".safetensors":
        concepts: tuple[Path, ...] = (out,)
    else:
        concepts = tuple((out or library) / f"{name}.safetensors" for name in config.names)
    return TrainingFiles(concepts=concepts, folder=folder or library.parent / "training" / "-".join(config.names))


def check_files(files: TrainingFiles, *, resume: bool = False, replace: bool = False) -> None:
    """Raises TrainError if the run could not write its files, or would overwrite some without replace."""
    if resume and not files.checkpoint.exists():
        raise TrainError(f"--resume: {_explain_missing_checkpoint(files)}")
    for path in files.concepts:
        check_writable(path.parent, "--out")
        if path.is_dir():
            raise TrainError(f"{path}: is a folder; choose another --name or --out")
        if path.exists() and not replace:
            raise TrainError(f"{path}: already exists; choose another --name or --out, or use --replace")
    check_writable(files.folder, "--work")
    checkpoint = files.checkpoint
    if checkpoint.exists() and not (resume or replace):
        raise TrainError(
            f"{checkpoint}: is the checkpoint of an unfinished run; use --resume, or --replace to start again"
        )


def _explain_missing_checkpoint(files: TrainingFiles) -> str:
    written = next((path for path in files.concepts if path.is_file()), None)
    if written is None:
        return f"no checkpoint in {files.folder}; leave it out to start a run"
    return (
        f"the run that made {written} has finished, and a finished run keeps no checkpoint; to train for more steps, "
        "start again with --replace and --set steps=N"
    )


@contextmanager
def hold_work_folder(files: TrainingFiles) -> Iterator[None]:
    """Make the work folder for the block and keep other runs out of it; on failure an empty one is removed.

    Raises TrainError if another run uses it. Of several processes of one run, the first holds it.
    """
    check_writable(files.folder, "--work")
    with new_folder(files.folder), ExitStack() as stack:
        is_first = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate set it
        if is_first and not stack.enter_context(claimed_folder(files.folder)):
            raise TrainError(f"--work {files.folder}: another training is using it; wait for it, or choose another")
        yield


def describe_resumption(files: TrainingFiles) -> str:
    """How to continue after the concepts could not be written."""
    if not files.checkpoint.exists():
        return "its checkpoint could not be written either; free disk space and start again"
    options = "--resume --replace" if any(path.exists() for path in files.concepts) else "--resume"
    return f"the checkpoint {files.checkpoint} is kept; free disk space or choose another --out, then use {options}"
