"""Number formats that a device computes in hardware."""

import pytest
import torch

from costars.model.precision import has_bf16_units, preferred_dtype
from costars.studio import open_studio


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_has_bf16_units_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16_units(torch.device("cuda")) is expected


def test_cpu_without_onednn_support_has_none(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not has_bf16_units(torch.device("cpu"))


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_x86_cpu_needs_avx512_or_amx(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bf16_units(torch.device("cpu")) is (avx512 or amx)


def test_other_devices_have_none():
    assert not has_bf16_units(torch.device("mps"))


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), torch.float16), ((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
)
def test_gpu_without_bf16_units_draws_in_float16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert preferred_dtype(torch.device("cuda")) is expected
    assert preferred_dtype(torch.device("cpu")) is torch.float32


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 6), torch.bfloat16)])
def test_studio_chooses_by_the_gpu(monkeypatch, tmp_path, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert open_studio("cuda", library=tmp_path).dtype is expected
    assert open_studio("cuda", "float32", library=tmp_path).dtype is torch.float32
