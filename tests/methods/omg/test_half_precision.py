"""In half precision only the networks compute in half precision: latents, blend, guidance and scheduler do not."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from costars.methods.omg import stages
from costars.model.hub import Source
from costars.model.load import load_model
from costars.records.plan import read_plan, write_plan
from costars.resolve import resolve_scene


def load_in(dtype, golden):
    return load_model(Source("tiny", golden / "tiny-sdxl"), torch.device("cpu"), dtype)


@contextmanager
def unet_alone_in_half(half):
    """The model in float32, but for its UNet and the text that it reads."""

    def cast(inputs):
        return tuple(value.to(half.dtype) if value.ndim > 1 else value for value in inputs)

    def widen(module, inputs, output):
        output.sample = output.sample.float()
        return output

    handles = [half.unet.register_forward_pre_hook(lambda module, inputs: cast(inputs))]
    handles.append(half.unet.register_forward_hook(widen))
    try:
        yield replace(half, dtype=torch.float32)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("dtype", "scheduler"), [(torch.bfloat16, "dpm++ 2m"), (torch.bfloat16, "euler a"), (torch.float16, "unipc")]
)
def test_both_stages_are_exact_but_for_the_unet(golden, planned, concepts, finish, tmp_path, dtype, scheduler):
    half = load_in(dtype, golden)
    settings = {"scheduler": scheduler, "steps": 4, "start": 0.5, "method": {"name": "two_stage", "feather_cells": 1}}

    def draw(model):
        plan = planned(model, **settings)
        latent, _ = finish(stages.personalise(resolve_scene(plan.scene, model, concepts), plan))
        assert plan.layout.latents.dtype is latent.dtype is torch.float32
        return plan, latent

    plan, latent = draw(half)
    with unet_alone_in_half(half) as mixed:
        expected_plan, expected = draw(mixed)
    assert torch.equal(plan.layout.latents, expected_plan.layout.latents) and torch.equal(latent, expected)
    write_plan(plan, tmp_path / "plan")
    assert torch.equal(read_plan(tmp_path / "plan").layout.latents, plan.layout.latents)


def test_size_ids_are_not_rounded(golden):
    half = load_in(torch.bfloat16, golden)
    assert half.size_ids((2056, 1000)).tolist() == [[1000, 2056, 0, 0, 1000, 2056]]
