"""What this machine has and what is missing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from costars.threads import BOUNDED_WAITING

REQUIRED = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "scipy", "pillow")


def findings() -> Iterator[tuple[str, str, bool]]:
    """(what, how it is, whether it is as it should be), one after the other."""
    yield "python", f"{platform.python_version()} on {platform.system()}", True
    for name in REQUIRED:
        try:
            yield name, version(name), True
        except PackageNotFoundError:
            yield name, f"not installed; run: pip install {name}", False
    yield from _torch()
    yield from _torchvision()
    yield from _weights()


def _torch() -> Iterator[tuple[str, str, bool]]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield "device", f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", True
    else:
        yield "device", f"cpu, {os.cpu_count()} cores (torch sees no CUDA device)", True
    waiting = {name: os.environ[name] for name in BOUNDED_WAITING if name in os.environ}
    yield "threads", f"{torch.get_num_threads()}, {_settings_line(waiting)}", True
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield "memory", f"{pages / 2**30:.1f} GiB", True


def _settings_line(waiting: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in waiting.items()) or "waiting as OpenMP's default"


def _torchvision() -> Iterator[tuple[str, str, bool]]:
    """A torchvision that does not fit torch breaks diffusers and transformers with it."""
    if find_spec("torchvision") is None:
        yield "torchvision", "not installed (not needed)", True
        return
    try:
        import torchvision  # type: ignore[import-not-found]

        yield "torchvision", str(torchvision.__version__), True
    except (ImportError, RuntimeError) as error:
        yield "torchvision", f"does not fit torch ({error}); run: pip uninstall torchvision", False


def _weights() -> Iterator[tuple[str, str, bool]]:
    from costars.concepts.library import Store
    from costars.settings import machine_settings

    settings = machine_settings()
    model = settings.builtin / "model" / "model_index.json"
    segmenter = settings.builtin / "segmenter" / "model.safetensors"
    for what, path in (("builtin model", model), ("segmenter", segmenter)):
        there = path.is_file()
        yield what, "there" if there else f"missing at {settings.builtin.name}; install costars again", there
    names = [
        name for name, _ in Store(settings.builtin / "concepts", settings.library, settings.concept_folders).files()
    ]
    yield "concepts", f"{len(names)} found", bool(names)
    yield "library", str(_short(settings.library)), True


def _short(path: Path) -> Path:
    home = Path.home()
    return Path("~") / path.relative_to(home) if path.is_relative_to(home) else path
