"""Where a checkpoint is: a folder, a single file, or an id on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE

from costars.errors import ModelError
from costars.model.components import never_read

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Weights as safetensors, and the small files beside them; never code, never a pickle. A whole pipeline has
# its parts in folders, and beside them single files that are not wanted.
PIPELINE = ("*.json", "*/*.json", "*/*.txt", "*/*.safetensors")
PART = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class Source:
    """A checkpoint to open: what the scene calls it and where it lies, and what is read from elsewhere.

    vae replaces the checkpoint's own decoder; config is a diffusers folder (its .json files are enough)
    that says how a single file is built; prediction is what the UNet predicts, where the files do not say;
    with tiles the decoder works in tiles.
    """

    name: str
    path: Path
    vae: Path | None = None
    config: Path | None = None
    prediction: str | None = None
    tiles: bool = False


def located(
    name: str, base: Path | None, *, offline: bool, what: str = "model", wanted: Sequence[str] = PIPELINE
) -> Path:
    """The folder or file of this name; a relative one lies beside base, and an id is fetched from the hub.

    An id is org/name, or org/name@revision. Raises ModelError where there is nothing.
    """
    here = (base or Path()) / Path(name).expanduser()
    if here.exists():
        return here
    if not is_hub_id(name):
        raise ModelError(
            f"{what} {name!r}: no such folder or file; "
            "want a diffusers folder, a .safetensors file or a hub id org/name"
        )
    return fetched(name, wanted, offline=offline, what=what)


def is_hub_id(name: str) -> bool:
    """Whether this could be org/name or org/name@revision."""
    return _HUB_ID.fullmatch(name) is not None


def fetched(name: str, wanted: Sequence[str], *, offline: bool, what: str = "model") -> Path:
    """The hub id's folder in the Hugging Face cache, which is filled first unless offline.

    wanted are patterns of file names; weights of a variant that would not be read are not fetched.
    Raises ModelError where it is not to be had.
    """
    offline = offline or HF_HUB_OFFLINE
    repository, _, revision = name.partition("@")
    try:
        left = [] if offline else never_read(list_repo_files(repository, revision=revision or None))
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(wanted),
            ignore_patterns=left,
            local_files_only=offline,
        )
    except Exception as error:  # no such id or revision, no network, no permission, not in the cache: many kinds
        if offline:
            raise ModelError(
                f"{what} {name!r}: no such folder, not in the Hugging Face cache, and costars is offline; "
                "fetch it once with a network, or give a folder"
            ) from error
        line = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{what} {name!r}: no such folder, and not to be had from the hub ({line}); "
            "check the id, the revision and the network, or give a folder"
        ) from error
    return Path(folder)
