"""A checkpoint with a value that would fail while drawing is refused when it is loaded."""

import json
import os
import shutil

import pytest
import torch

from costars.errors import CostarsError, ModelError
from costars.model.hub import Source
from costars.model.load import load_model

BAD = [
    ("unet/config.json", "norm_eps", "x", "unet: norm_eps is 'x', want float"),
    ("unet/config.json", "norm_eps", -1.0, "unet: norm_eps is -1.0, want a number above 0"),
    ("unet/config.json", "center_input_sample", "yes", "unet: center_input_sample is 'yes', want bool"),
    ("unet/config.json", "sample_size", 0, "unet: sample_size is 0, want a number above 0"),
    ("unet/config.json", "layers_per_block", 10**6, "layers_per_block is 1000000, want numbers up to 200"),
    ("unet/config.json", "sample_size", 1e300, "sample_size is 1e+300, want numbers up to 1000000"),
    ("vae/config.json", "scaling_factor", "big", "vae: scaling_factor is 'big', want float"),
    ("vae/config.json", "scaling_factor", 0, "vae: scaling_factor is 0, want a number above 0"),
    ("vae/config.json", "force_upcast", "no", "vae: force_upcast is 'no', want bool"),
    ("scheduler/scheduler_config.json", "steps_offset", "x", "scheduler: steps_offset is 'x', want int"),
    ("scheduler/scheduler_config.json", "beta_end", 1e9, "scheduler"),
    ("scheduler/scheduler_config.json", "beta_start", -1, "scheduler: beta_start is -1, want a number above 0"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 0, "scheduler"),
    ("text_encoder/config.json", "layer_norm_eps", "x", "layer_norm_eps"),
    ("tokenizer/tokenizer_config.json", "model_max_length", 2, "tokenizer: model_max_length is 2, want 3 to 77"),
    ("tokenizer/tokenizer_config.json", "model_max_length", 10**30, "model_max_length is 1000000000000000"),
    ("tokenizer_2/tokenizer_config.json", "model_max_length", -5, "tokenizer_2: model_max_length is -5"),
    ("tokenizer_2/tokenizer_config.json", "model_max_length", 40, "(tokenizer 77, tokenizer_2 40), want the same"),
]


@pytest.fixture(scope="module")
def checkpoint(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    shutil.copytree(golden / "tiny-sdxl", folder)
    return folder


def load(folder):
    return load_model(Source("x", folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("name", "key", "value", "message"), BAD)
def test_wrong_value_is_refused_when_loading(checkpoint, name, key, value, message):
    before = (checkpoint / name).read_text()
    (checkpoint / name).write_text(json.dumps(json.loads(before) | {key: value}))
    try:
        with pytest.raises(ModelError) as caught:
            load(checkpoint)
    finally:
        (checkpoint / name).write_text(before)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/vocab.json", "model_index.json", "vae/x.safetensors"])
def test_pipe_in_a_checkpoint_is_not_waited_for(golden, tmp_path, name):
    shutil.copytree(golden / "tiny-sdxl", tmp_path / "model")
    (tmp_path / "model" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "model" / name)
    with pytest.raises(CostarsError, match=r"is a named pipe, not a file|no model_index\.json"):
        load(tmp_path / "model")
