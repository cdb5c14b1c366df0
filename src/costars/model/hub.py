"""Find a checkpoint: a folder, a single file, or an id on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE

from costars.errors import ModelError, to_one_line
from costars.files.regular_file import expand_user, is_there
from costars.model.components import list_unused_weights
from costars.scene.names import is_hub_id

# Safetensors and the small files beside them; never code, never a pickle. A pipeline has its components in folders;
# single files at its top level are other releases of the same weights and are not needed.
PIPELINE_PATTERNS = ("*.json", "*/*.json", "*/*.txt", "*/*.safetensors")
COMPONENT_PATTERNS = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class Source:
    """A checkpoint to load: its name in the scene, its path, and what replaces its own parts.

    vae is a VAE that replaces the checkpoint's; config is a diffusers folder (its .json files suffice) that gives the
    configuration of a single file; prediction is the scheduler's prediction_type, for files that do not state it;
    with tiles the VAE decodes in tiles.
    """

    name: str
    path: Path
    _: KW_ONLY
    vae: Path | None = None
    config: Path | None = None
    prediction: str | None = None
    tiles: bool = False


def locate(name: str, *, offline: bool, what: str = "model", patterns: Sequence[str] = PIPELINE_PATTERNS) -> Path:
    """The folder or file of this name; a hub id is downloaded.

    A hub id is org/name or org/name@revision. what names the setting in errors. Raises ModelError if nothing is found.
    """
    path = expand_user(name)
    if is_there(path):
        return path
    if not is_hub_id(name):
        raise ModelError(
            f"{what} {name!r}: no such folder or file; "
            "want a diffusers folder, a .safetensors file or a hub id org/name"
        )
    return download_from_hub(name, patterns, offline=offline, what=what)


def download_from_hub(name: str, patterns: Sequence[str], *, offline: bool, what: str = "model") -> Path:
    """The folder of a hub id in the Hugging Face cache, downloaded first unless offline.

    patterns select files by name; weights of a variant that would not be read are skipped. Raises ModelError if the id
    is not available.
    """
    offline = offline or HF_HUB_OFFLINE
    repository, _, revision = name.partition("@")
    try:
        skipped = [] if offline else list_unused_weights(list_repo_files(repository, revision=revision or None))
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=skipped,
            local_files_only=offline,
        )
    except Exception as error:  # huggingface_hub raises many kinds: unknown id or revision, no network, no permission
        if offline:
            raise ModelError(
                f"{what} {name!r}: no such folder, not in the Hugging Face cache, and costars is offline; "
                "download it once with a network, or give a folder"
            ) from error
        line = to_one_line(error)
        raise ModelError(
            f"{what} {name!r}: no such folder, and the hub does not provide it ({line}); "
            "check the id, the revision and the network, or give a folder"
        ) from error
    return Path(folder)
