"""Draw many pictures of different concepts in one process, and measure what stays in memory.

The built-in model draws pairs; every picture has two LoRAs of its own, copies of bundled ones with noise. After each
picture it counts the tensors that anything refers to, and reads the process's resident memory:

    python bench/memory.py [--count 100] [--steps 4] [--size 128] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from costars import RegionError, Scene, Studio, open_studio

import torch  # isort: skip - costars limits OpenMP's threads first
from PIL import Image  # isort: skip
from safetensors import safe_open  # isort: skip
from safetensors.torch import save_file  # isort: skip

CAST = {"ana": "woman", "dan": "man"}
NOISE = 0.01  # as a share of each tensor's deviation


def save_variants(bundled: Path, folder: Path, count: int) -> None:
    """Write count variants of each bundled LoRA into a library's folder, ana0.safetensors and so on."""
    for name in CAST:
        with safe_open(bundled / f"{name}.safetensors", framework="pt") as file:
            card, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for i in range(count):
            changed = {key: value + NOISE * value.std() * torch.randn_like(value) for key, value in tensors.items()}
            save_file(changed, folder / f"{name}{i}.safetensors", metadata=card)


def read_memory(device: torch.device) -> dict[str, Any]:
    """Live tensors and their bytes, resident memory of the process, and allocated memory of a GPU, in MB."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    facts: dict[str, Any] = {
        "tensors": len(tensors),
        "tensors_mb": round(sum(storages.values()) / 1e6, 1),
        "resident_mb": round(int(resident.split()[1]) / 1e3, 1),
    }
    if device.type == "cuda":
        facts["allocated_mb"] = round(torch.cuda.memory_allocated(device) / 1e6, 1)
    return facts


def save_masks(folder: Path) -> dict[str, Path]:
    """Write a mask of half a picture for each member."""
    masks = {}
    for name, left in zip(CAST, (0, 64), strict=True):
        mask = Image.new("L", (128, 128))
        mask.paste(255, (left, 0, left + 64, 128))
        masks[name] = folder / f"{name}.png"
        mask.save(masks[name])
    return masks


def make_scene(i: int, masks: dict[str, Path], steps: int, size_px: int) -> Scene:
    """Scene i: two stages with masks, two stages with the attention segmenter, and all adapters at once, in turn."""
    with_masks, with_segmenter = i % 3 == 0, i % 3 == 1
    cast = {name: {"concept": f"{name}{i}", "where": str(masks[name]) if with_masks else None} for name in CAST}
    return Scene.model_validate(
        {
            "prompt": "{ana} to the left of {dan} in a park",
            "cast": cast,
            "method": "two_stage" if with_masks or with_segmenter else "multi_lora",
            "segmenter": "attention" if with_segmenter else None,
            "steps": steps,
            "size": (size_px, size_px),
            "seed": i,
        }
    )


def draw(studio: Studio, masks: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The memory after each picture; in one of few steps the segmenter may find nobody."""
    memory = []
    for i in range(options.count):
        with suppress(RegionError):
            studio.render(make_scene(i, masks, options.steps, options.size))
        memory.append(read_memory(studio.device))
        if i < 3 or (i + 1) % 10 == 0:
            print(f"picture {i + 1}: {memory[-1]}", flush=True)
    return memory


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="px per side")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        studio = open_studio(library=Path(folder))
        save_variants(studio.settings.builtin / "concepts", Path(folder), options.count)
        memory = draw(studio, save_masks(Path(folder)), options)
    if options.out:
        options.out.write_text(json.dumps(memory, indent=2) + "\n")


if __name__ == "__main__":
    main()
