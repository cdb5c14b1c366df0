"""Kernels, bytes and waits of a step, counted on the meta device: SDXL at 1024 px, and every sampler on a tiny model.

The budgets are for two concepts with a LoRA each. A number that grows means a step that is slower on a GPU.
"""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel

from costars.methods.omg.stages import draw_layout, personalise
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.offload import Offload
from costars.model.schedulers import SAMPLERS
from costars.resolve import resolve_scene
from costars.types import ControlNet, Plan

BENCH = Path(__file__).parents[1] / "bench"
# Their noise is drawn on the CPU, so that every device has the same, and copied in each or every other step.
NOISY = {"ddpm", "dpm++ 2m sde", "dpm++ 2m sde heun", "dpm++ sde", "dpm2 a", "euler a", "lcm", "tcd"}
COPIED_BY_DIFFUSERS = {"unipc": 6}  # its coefficients


@pytest.fixture(scope="module")
def counting():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import kernel_counts

        yield kernel_counts


@pytest.fixture(scope="module")
def counts(counting):
    return counting.count_all(counting.open_on_meta(), k=2)


@pytest.fixture(scope="module")
def tiny(counting):
    return counting.open_on_meta(size_px=64, tiny=True)


@pytest.mark.parametrize(("stage", "most"), [("stage 1", 1.0), ("stage 2", 1.3), ("stage 2, self-attention too", 1.35)])
def test_a_step_takes_few_more_kernels_than_the_unet_alone(counts, stage, most):
    plain = counts["UNet of 2 rows"].kernels.total()
    assert plain > 1500 and counts[stage].kernels.total() <= most * plain


def test_adapters_move_few_bytes_compared_with_the_unet(counts):
    products = ("bmm", "baddbmm_")
    moved = sum(counts["stage 2"].moved[name] - counts["UNet of 7 rows"].moved[name] for name in products)
    assert 5e9 < moved < 15e9
    total = {name: each.moved.total() for name, each in counts.items()}
    assert total["stage 2"] < 1.1 * total["UNet of 7 rows"] and total["stage 1"] < 1.05 * total["UNet of 2 rows"]


def test_no_step_waits_for_the_device(counts):
    assert {name: dict(each.waits) for name, each in counts.items()} == {name: {} for name in counts}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_reads_a_number_from_the_device(counting, tiny, sampler, monkeypatch):
    """The whole loop, except for the UNet itself."""
    monkeypatch.setattr(tiny.unet, "forward", lambda x, *_, **__: SimpleNamespace(sample=torch.empty_like(x)))
    waits = counting.count_steps(draw_layout(counting.resolve(tiny, 1, 10, scheduler=sampler)), skip=2)[0].waits
    assert waits.keys() <= {"copy to the device"}
    assert waits.total() <= COPIED_BY_DIFFUSERS.get(sampler, 1 if sampler in NOISY else 0)


def test_offloaded_parts_are_on_the_device_only_in_use(counting, golden, concepts, make_scene, make_region, finish):
    """Both stages with weights on the CPU and the meta device as the other, which reads no tensor of the CPU."""
    loaded = load_model(Source("tiny", golden / "tiny-sdxl"), torch.device("cpu"), torch.float32, memory="offload")
    model = replace(loaded, device=counting.META, offload=Offload("offload", counting.META))
    net = ControlNetModel.from_unet(model.unet).requires_grad_(False)
    parts = {"unet": model.unet, "decoder": model.vae.decoder, "net": net, **{e.name: e.module for e in model.encoders}}
    used = {name: set() for name in parts}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda module, _, name=name: used[name].update(devices(module)))
    control = ControlNet(net, torch.ones(1, 3, 64, 64, device=counting.META), 1.0, 0.0, 1.0)
    with counting.CountOperations():
        resolved = replace(resolve_scene(make_scene(steps=2, start=0.5), model, concepts), controls=(control,))
        layout, _ = finish(draw_layout(resolved))
        assert all(devices(part) == {"cpu"} for part in parts.values())
        regions = {"a": make_region("man", (0, 0, 0.5, 1)), "b": make_region("woman", (0.5, 0, 1, 1))}
        latent, _ = finish(personalise(resolved, Plan(resolved.scene, layout, regions)))
    assert latent.device == layout.latents.device == counting.META
    assert used == {name: {"meta"} for name in parts}
    assert all(devices(part) == {"cpu"} for part in parts.values())


def devices(module):
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize(
    ("read", "wait"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[:, [0, 1]], "index from the host"),
        (lambda x: x.cpu(), "copy from the device"),
        (lambda x: x + torch.ones(3).to(x.device), "copy to the device"),
    ],
)
def test_every_kind_of_wait_is_counted(counting, read, wait):
    def steps():
        for _ in range(2):
            yield read(torch.empty(3, 3, device="meta"))

    assert counting.count_steps(steps())[0].waits[wait] == 1


def test_kernels_and_bytes_of_known_operations_are_counted(counting):
    def steps():
        x, y = (torch.empty(4, 8, device="meta", dtype=torch.float16) for _ in range(2))
        for _ in range(2):
            x.add_(y)
            yield (x.T.contiguous()[:, :2] * 2).T

    counts = counting.count_steps(steps())[0]
    assert dict(counts.kernels) == {"add_": 1, "mul": 1, "clone": 1}
    assert dict(counts.moved) == {"add_": 3 * 64, "mul": 2 * 32, "clone": 2 * 64}


def test_the_script_writes_its_counts(monkeypatch, tmp_path, capsys):
    out = tmp_path / "counts.json"
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", ["kernel_counts.py", "--tiny", "--size", "64", "--by-name", "--out", str(out)])
    runpy.run_path(str(BENCH / "kernel_counts.py"), run_name="__main__")
    totals = json.loads(out.read_text())
    assert len(totals) == 5 and all(each["kernels"] > 500 for each in totals.values())
    assert capsys.readouterr().out.count("  attention: ") == len(totals)
