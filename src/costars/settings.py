"""Settings of this machine and user; each may be set as COSTARS_<NAME> in the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from costars.errors import SettingsError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Memory = Literal["auto", "full", "offload", "sequential"]


def _split(folders: object) -> object:
    """A list of folders as PATH has it; one in a home folder may begin with ~."""
    return [Path(f).expanduser() for f in folders.split(os.pathsep) if f] if isinstance(folders, str) else folders


class Settings(BaseSettings):
    """Where things are and what to run on."""

    model_config = SettingsConfigDict(env_prefix="COSTARS_", frozen=True, extra="forbid")

    library: Path = user_data_path("costars") / "concepts"
    concept_folders: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split)] = ()
    builtin: Path = Path(__file__).parent / "builtin" / "weights"
    device: Device = "auto"
    dtype: Dtype = "auto"
    max_rows: int = Field(0, ge=0)
    offline: bool = False
    memory: Memory = "auto"


def machine_settings(**given: object) -> Settings:
    """The settings, what is given going first; raises SettingsError for a value that is not allowed."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        name = "COSTARS_" + "_".join(str(part) for part in problem["loc"]).upper()
        raise SettingsError(f"{name}={problem['input']!r}: {problem['msg']}; change it or unset it") from None
