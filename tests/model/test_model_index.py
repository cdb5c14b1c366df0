"""What model_index.json says of an empty negative prompt."""

import json

import pytest

from costars.errors import ModelError
from costars.model.families import SD2, SD15, SDXL
from costars.model.model_index import reads_force_zeros


@pytest.mark.parametrize(
    ("family", "index", "expected"),
    [
        (SDXL, {"force_zeros_for_empty_prompt": True}, True),
        (SDXL, {"force_zeros_for_empty_prompt": False}, False),
        (SDXL, {}, True),
        (SDXL, None, True),
        (SD15, {"force_zeros_for_empty_prompt": True}, False),
        (SD2, None, False),
    ],
)
def test_the_file_decides_and_diffusers_default_holds_without_it(tmp_path, family, index, expected):
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert reads_force_zeros(tmp_path, family) is expected
    assert reads_force_zeros(None, family) is family.force_zeros


def test_another_value_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"force_zeros_for_empty_prompt": "no"}')
    with pytest.raises(ModelError, match="force_zeros_for_empty_prompt is 'no'; want true or false"):
        reads_force_zeros(tmp_path, SDXL)


def test_the_built_in_model_was_trained_with_encoded_empty_prompts(golden):
    from costars.settings import machine_settings

    folder = machine_settings().builtin / "model"
    assert reads_force_zeros(folder, SDXL) is False and reads_force_zeros(golden / "tiny-sdxl", SDXL) is True
