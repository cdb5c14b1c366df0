"""Which versions made a picture."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("costars", "torch", "diffusers", "transformers")


def versions(model_sha256: str) -> dict[str, str]:
    """Versions of Python and the libraries that decide a picture's bytes, and the model's hash."""
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "model_sha256": model_sha256}
