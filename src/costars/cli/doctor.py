"""What is installed, what this machine has, and what is missing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from costars.errors import CostarsError
from costars.threads import BOUNDED_WAITING

REQUIRED = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "scipy", "pillow")


class Finding(NamedTuple):
    """One line of the report; ok is False if something has to be done."""

    name: str
    value: str
    ok: bool = True


def check_machine() -> Iterator[Finding]:
    """Every finding, one after the other."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()}")
    for name in REQUIRED:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, f"not installed; run: pip install {name}", False)
    yield from _check_torch()
    yield _check_torchvision()
    yield from _check_weights()


def _check_torch() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield Finding("device", f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    else:
        yield Finding("device", f"cpu, {os.cpu_count()} cores (no CUDA device)")
    yield Finding("threads", f"{torch.get_num_threads()}, {_waiting_settings()}")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Finding("memory", f"{pages / 2**30:.1f} GiB")


def _waiting_settings() -> str:
    """The variables that set how OpenMP's threads wait."""
    settings = [f"{name}={os.environ[name]}" for name in BOUNDED_WAITING if name in os.environ]
    return ", ".join(settings) or "OpenMP's default waiting"


def _check_torchvision() -> Finding:
    """A torchvision that does not match torch breaks the import of diffusers and transformers."""
    if find_spec("torchvision") is None:
        return Finding("torchvision", "not installed (not needed)")
    try:
        import torchvision  # type: ignore[import-not-found]

        return Finding("torchvision", str(torchvision.__version__))
    except (ImportError, RuntimeError) as error:
        return Finding("torchvision", f"does not match torch ({error}); run: pip uninstall torchvision", False)


def _check_weights() -> Iterator[Finding]:
    from costars.concepts.library import Library
    from costars.settings import machine_settings

    settings = machine_settings()
    model = settings.builtin / "model" / "model_index.json"
    segmenter = settings.builtin / "segmenter" / "model.safetensors"
    for name, path in (("builtin model", model), ("segmenter", segmenter)):
        found = path.is_file()
        yield Finding(
            name, "found" if found else f"missing in {_shorten(settings.builtin)}; install costars again", found
        )
    library = Library(settings.builtin / "concepts", settings.library, settings.concept_folders)
    try:
        count = sum(1 for _ in library.files())
        yield Finding("concepts", f"{count} found", count > 0)
    except CostarsError as error:
        yield Finding("concepts", str(error), False)
    yield Finding("library", str(_shorten(settings.library)))


def _shorten(path: Path) -> Path:
    """The path with ~ for the home folder."""
    home = Path.home()
    return Path("~") / path.relative_to(home) if path.is_relative_to(home) else path
