"""What a checkpoint's model_index.json says of its pipeline."""

from __future__ import annotations

from pathlib import Path

from costars.errors import ModelError
from costars.model.config_values import read_config
from costars.model.families import Family

FORCE_ZEROS = "force_zeros_for_empty_prompt"  # diffusers' name for it


def reads_force_zeros(folder: Path | None, family: Family) -> bool:
    """Whether an empty negative prompt has zeros for features: as the folder's model_index.json says, else the family.

    diffusers knows this only for families with a pooled embedding. Raises ModelError for another value than true or
    false.
    """
    index = None if folder is None else folder / "model_index.json"
    if not family.force_zeros or index is None or not index.is_file():
        return family.force_zeros
    value = read_config(index).get(FORCE_ZEROS, family.force_zeros)
    if not isinstance(value, bool):
        raise ModelError(f"{index}: {FORCE_ZEROS} is {value!r}; want true or false")
    return value
