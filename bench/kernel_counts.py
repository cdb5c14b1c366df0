"""Count what one step asks of a GPU, without one: kernels, bytes moved, and waits of the host for the device.

Runs the real UNet on the meta device, which knows shapes and computes nothing: a step of the UNet alone for two rows
(one picture with guidance), of stage 1, and of stage 2 with k concepts, each with its own LoRA on every attention
layer. An aten operation that is not a view counts as one kernel, attention as one:

    python bench/kernel_counts.py [--k 2] [--size 1024] [--tiny] [--by-name] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint import ATTENTION, RANK, build_model, build_modules
from diffusers.utils import logging
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from costars import Scene
from costars.methods.omg.stages import draw_layout, personalise
from costars.model.families import attention_layers
from costars.model.model import Model
from costars.model.predict import Conditioning, predict_noise
from costars.resolve import resolve_scene
from costars.resolved_scene import ResolvedScene
from costars.types import Adapter, Concept, Layout, LowRank, Plan, Region

META, STEPS, START = torch.device("meta"), 50, 16  # OMG's code
# The host waits for these, and for copies from and to pageable memory.
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique_consecutive", "masked_select"}
INDEXED = (Tensor.__getitem__, Tensor.__setitem__)
# In-place operations that read what they write to.
UPDATES = {"add_", "mul_", "addmm_", "baddbmm_", "index_add_"}
# They allocate memory or make a view; the device has nothing to do.
NO_KERNEL = set(
    "empty empty_like empty_strided new_empty new_empty_strided detach lift_fresh alias _unsafe_view".split()
)


@dataclass
class Counts:
    """Kernels, bytes they read and write, and waits of the host, by operation."""

    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, tensors: list[Tensor]) -> None:
        """Add one kernel that reads and writes these tensors."""
        self.kernels[name] += 1
        self.moved[name] += sum(_bytes(tensor) for tensor in tensors)

    def totals(self) -> dict[str, float]:
        """The three sums."""
        return {
            "kernels": self.kernels.total(),
            "gigabytes": round(self.moved.total() / 1e9, 2),
            "waits": self.waits.total(),
        }


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in memory; expanded axes are stored once."""
    stored = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 1]
    return int(np.prod(stored, dtype=np.int64)) * tensor.element_size() if tensor.device == META else 0


class CountOperations(TorchDispatchMode):
    """Counts operations on the meta device in the block; a number that is read from the device is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, keywords = func._schema.name.removeprefix("aten::"), kwargs or {}
        read = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
        on_meta = [tensor for tensor in read if tensor.device == META]
        if name in WAITS and on_meta:
            self.counts.waits[name] += 1
            return _answer(name, on_meta[0])
        if name == "_to_copy" and on_meta and torch.device(keywords.get("device") or META) != META:
            self.counts.waits["copy from the device"] += 1
            return torch.ones(on_meta[0].shape, dtype=keywords.get("dtype") or on_meta[0].dtype)
        out = func(*args, **keywords)
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.device == META]
        if name in ("_to_copy", "copy_") and written and any(tensor.device != META for tensor in read):
            self.counts.waits["copy to the device"] += 1
        if (on_meta or written) and not func.is_view and name not in NO_KERNEL and (written or name == "copy_"):
            new = [t for t in written if name in UPDATES or all(t is not other for other in on_meta)]
            self.counts.add(name, [*on_meta, *new])
        return out


def _answer(name: str, tensor: Tensor) -> Any:
    if name == "nonzero":
        return torch.zeros(1, tensor.ndim, dtype=torch.long, device=META)
    return True if tensor.dtype == torch.bool or name in ("equal", "is_nonzero") else 1


def _is_host_index(index: Any) -> bool:
    """Whether a part of an index is in the CPU's memory, so that it must be copied to the device."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, list | np.ndarray) or (isinstance(p, Tensor) and p.device != META) for p in parts)


class CountCalls(TorchFunctionMode):
    """Counts attention on the meta device as one kernel, as on a GPU, and checks the indices, in the block."""

    def __init__(self, counter: CountOperations) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if func in INDEXED and args[0].device == META and _is_host_index(args[1]):
            self.counter.counts.waits["index from the host"] += 1
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **keywords)
        query, key, value = (*args, *(keywords[name] for name in ("query", "key", "value") if name in keywords))[:3]
        if query.device != META:
            return func(*args, **keywords)
        # In the layout of CUDA's kernels: heads beside tokens, so that the following transpose is a view.
        rows, heads, tokens, _ = query.shape
        out = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        bias = keywords.get("attn_mask")
        self.counter.counts.add("attention", [query, key, value, out, *([] if bias is None else [bias])])
        return out


def count_steps(steps: Generator[Any, None, Any], skip: int = 1, count: int = 1) -> list[Counts]:
    """The counts of each of some steps, after steps that are skipped because they also set things up."""
    counter, counts = CountOperations(), list[Counts]()
    with counter, CountCalls(counter):
        for _ in islice(steps, skip):
            pass
        for _ in range(count):
            counter.counts = Counts()
            next(steps)
            counts.append(counter.counts)
    steps.close()
    return counts


def make_adapter(model: Model) -> Adapter:
    """A LoRA of RANK on every attention layer of the UNet."""
    adapter = {}
    for name, layer in attention_layers(model.unet):
        for part in ATTENTION:
            rows, columns = layer.get_submodule(part).weight.shape
            down, up = (torch.empty(size, device=META) for size in ((RANK, columns), (rows, RANK)))
            adapter[f"unet.{name}.{part}"] = LowRank(down, up)
    return adapter


def resolve(model: Model, k: int, steps: int, **fields: Any) -> ResolvedScene:
    """k concepts of one class in a scene with OMG's own settings; fields are further ones of the scene."""
    names = [f"c{i}" for i in range(k)]
    prompt = " and ".join(f"{{{name}}}" for name in names) + " in a park"
    cast = {name: {"concept": f"{name}.safetensors", "class_name": "man"} for name in names}
    scene = Scene.model_validate({"prompt": prompt, "steps": steps, "model": "sdxl", "cast": cast, **fields})
    concepts = {name: Concept(name, "man", name, "sdxl", make_adapter(model), name, "") for name in names}
    return resolve_scene(scene, model, concepts)


def make_plan(resolved: ResolvedScene) -> Plan:
    """A plan of the right sizes, the members side by side."""
    scene, model, side = resolved.scene, resolved.model, resolved.size_px[0]
    regions = {}
    for i, name in enumerate(scene.cast):
        mask = np.zeros((side, side), dtype=np.float32)
        left, right = (round(j * side / len(scene.cast)) for j in (i, i + 1))
        mask[:, left:right] = 1
        regions[name] = Region("man", mask, 1.0, i)
    size = model.latent_size(resolved.size_px)
    latents = torch.empty(scene.steps + 1, model.info.latent_channels, *size, device=META, dtype=model.latent_dtype)
    image = Image.new("RGB", resolved.size_px)
    return Plan(scene, Layout(image, latents, {}, resolved.prompt, 2 * scene.steps), regions)


def call_unet(model: Model, rows: int) -> Generator[Tensor, None, None]:
    """Encode a prompt, then call the UNet with diffusers' own attention in each step."""
    text, size = model.encode_text("a man in a park"), model.latent_size(model.info.size_px)
    sample = torch.empty(rows, model.info.latent_channels, *size, device=META, dtype=model.dtype)
    pooled = None if text.pooled is None else text.pooled.expand(rows, -1)
    own = Conditioning(text.tokens.repeat(rows, 1, 1), pooled, model.size_ids(model.info.size_px))
    t = torch.empty((), device=META, dtype=torch.long)
    yield own.tokens
    for _ in range(STEPS):
        with torch.no_grad():
            yield predict_noise(model.unet, sample, t, own)


def count_all(model: Model, k: int) -> dict[str, Counts]:
    """The counts of the UNet alone, with as many rows as each stage has, and of both stages.

    Stage 2 uses the layout's cross-attention in every step; its self-attention in the first two steps here, of which
    the second is counted.
    """
    rows = 3 + 2 * k
    resolved = resolve(model, k, STEPS, method={"name": "two_stage", "self_replace_steps": (START + 2) / STEPS})
    counts = {f"UNet of {count} rows": count_steps(call_unet(model, count))[0] for count in (2, rows)}
    counts["stage 1"] = count_steps(draw_layout(resolved))[0]
    both, cross = count_steps(personalise(resolved, make_plan(resolved)), count=2)
    return {**counts, "stage 2": cross, "stage 2, self-attention too": both}


def open_on_meta(family: str = "sdxl", size_px: int = 1024, *, tiny: bool = False) -> Model:
    """The family's model in half precision, as shapes without values."""
    return build_model(family, family, size_px, build_modules(family, tiny, size_px, META, "bfloat16"), META)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--size", type=int, default=1024, help="px per side")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same architecture")
    parser.add_argument("--by-name", action="store_true", help="list the operations too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    results = count_all(open_on_meta(size_px=options.size, tiny=options.tiny), options.k)
    for name, counts in results.items():
        totals = counts.totals()
        print(f"{name}: {totals['kernels']} kernels, {totals['gigabytes']} GB moved, {totals['waits']} waits")
        if counts.waits:
            print(f"  waits: {dict(counts.waits)}")
        for operation, count in counts.kernels.most_common() if options.by_name else ():
            print(f"  {operation}: {count}, {counts.moved[operation] / 1e9:.2f} GB")
    if options.out:
        options.out.write_text(json.dumps({name: counts.totals() for name, counts in results.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
