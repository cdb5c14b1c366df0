"""Settings of this machine and user. Each can be set in the environment as COSTARS_<NAME>."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from costars.errors import ReadError, SettingsError
from costars.files.regular_file import expand_user

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Memory = Literal["auto", "full", "offload", "sequential"]


def _split_folders(folders: object) -> object:
    """Split a list of folders, separated as in PATH; ~ is the home folder."""
    return [_expand(f) for f in folders.split(os.pathsep) if f] if isinstance(folders, str) else folders


def _expand(folder: object) -> object:
    """A folder with ~ replaced. Raises ValueError for an empty name, which would be the working folder."""
    if not isinstance(folder, str | Path):
        return folder
    if not str(folder) or "\0" in str(folder):
        raise ValueError("want the path of a folder")
    try:
        return expand_user(folder)
    except ReadError as error:
        raise ValueError(f"{error.reason}; {error.remedy}") from None


Folder = Annotated[Path, BeforeValidator(_expand)]


class Settings(BaseSettings):
    """Folders, and the device to run on.

    library is the user's concepts, concept_folders are further ones that are only read, builtin is the bundled weights.
    max_rows is the most UNet rows per call, 0 for no limit; offline prevents downloads from the hub.
    """

    model_config = SettingsConfigDict(env_prefix="COSTARS_", frozen=True, extra="forbid")

    library: Folder = user_data_path("costars") / "concepts"
    concept_folders: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_folders)] = ()
    builtin: Folder = Path(__file__).parent / "builtin" / "weights"
    device: Device = "auto"
    dtype: Dtype = "auto"
    max_rows: int = Field(0, ge=0)
    offline: bool = False
    memory: Memory = "auto"


def machine_settings(**given: object) -> Settings:
    """The settings of the environment, overridden by the given ones; raises SettingsError for an invalid value."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        name = "COSTARS_" + "_".join(str(part) for part in problem["loc"]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}={problem['input']!r}: {message}; correct or unset it") from None
