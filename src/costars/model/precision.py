"""Number formats that a device computes in hardware."""

from __future__ import annotations

import platform

import torch

FIRST_CUDA_BF16 = 8  # compute capability of Ampere, the first NVIDIA cards with bfloat16 units


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; elsewhere float32 is faster.

    oneDNN runs bfloat16 on CPUs without such units by converting every operand, at about a tenth of float32's speed.
    ONEDNN_MAX_CPU_ISA limits the answer as it limits oneDNN.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= FIRST_CUDA_BF16
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True  # oneDNN's own answer
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def preferred_dtype(device: torch.device) -> torch.dtype:
    """The number format for drawing on a device: half precision on a GPU, float32 on other devices."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if has_bf16_units(device) else torch.float16
