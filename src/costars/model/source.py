"""Where a checkpoint is: a folder, a single file, or an id on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from costars.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Weights as safetensors, and the small files beside them; never code, never a pickle.
_WANTED = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors")


@dataclass(frozen=True)
class Source:
    """A checkpoint to open: what the scene calls it and where it lies, and what is read from elsewhere.

    vae replaces the checkpoint's own decoder; config is a diffusers folder (its .json files are enough)
    that says how a single file is built; prediction is what the UNet predicts, where the files do not say.
    """

    name: str
    path: Path
    vae: Path | None = None
    config: Path | None = None
    prediction: str | None = None


def located(name: str, base: Path | None, *, offline: bool, what: str = "model") -> Path:
    """The folder or file of this name; a relative one lies beside base, and an id is fetched from the hub.

    An id is org/name, or org/name@revision. Raises ModelError where there is nothing.
    """
    here = (base or Path()) / Path(name).expanduser()
    if here.exists():
        return here
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{what} {name!r}: no such folder or file; "
            "want a diffusers folder, a .safetensors file or a hub id org/name"
        )
    return _fetched(name, offline, what)


def _fetched(name: str, offline: bool, what: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = offline or HF_HUB_OFFLINE
    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(_WANTED), local_files_only=offline
        )
    except LocalEntryNotFoundError as error:
        why = "is not among the models fetched before, and costars is offline" if offline else "cannot be fetched"
        raise ModelError(
            f"{what} {name!r}: no folder here, and the hub id {why} ({_first_line(error)}); "
            "fetch it once with a network, or give a folder"
        ) from None
    except Exception as error:  # no network, no such id or revision, no permission: many kinds
        raise ModelError(
            f"{what} {name!r}: no folder here, and not to be had from the hub ({_first_line(error)}); "
            "check the id, the revision and the network, or give a folder"
        ) from None
    return Path(folder)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
