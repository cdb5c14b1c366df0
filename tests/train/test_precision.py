"""Precision of a run."""

from dataclasses import replace

import pytest
import torch

from costars.errors import TrainError
from costars.train.precision import resolve_precision


@pytest.mark.parametrize(("has_units", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_device_has_units_for_it(small, short_recipe, monkeypatch, has_units, precision):
    monkeypatch.setattr("costars.train.precision.has_bf16_units", lambda device: has_units)
    recipe = short_recipe("lora")
    assert resolve_precision(recipe, small) == precision
    assert resolve_precision(recipe, replace(small, dtype=torch.bfloat16)) == "bf16"
    assert resolve_precision(replace(recipe, precision="fp32"), small) == "fp32"


def test_full_precision_needs_a_float32_model(small, short_recipe):
    recipe = short_recipe("dreambooth", precision="fp32")
    with pytest.raises(TrainError, match="precision=fp32: the model is in bfloat16; load it with --dtype float32"):
        resolve_precision(recipe, replace(small, dtype=torch.bfloat16))
