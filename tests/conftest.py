"""What the tests share: a tiny SDXL checkpoint, two concepts made for it, and scenes that use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file, save_file

from costars.concepts.formats import load_concept
from costars.model.load import load_model
from costars.model.model import Model
from costars.model.source import Source
from costars.scene import Scene, parse_scene
from costars.types import Concept, Region

GOLDEN = Path(__file__).parent / "golden"
CLASSES = {"char_a": "man", "char_b": "woman"}

settings.register_profile("costars", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("costars")
torch.set_num_threads(1)  # the same sums in the same order on every machine


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the tiny checkpoint and of what the official code made with it."""
    return GOLDEN


@pytest.fixture(scope="session")
def sd15_folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD 1.5 checkpoint, four levels deep as the real one is, as diffusers writes it."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(golden / "tiny-sdxl" / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        cross_attention_dim=768,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=256,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, beta_schedule="scaled_linear")
    folder = tmp_path_factory.mktemp("sd15") / "model"
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder


def _tiny(dtype: torch.dtype) -> Model:
    return load_model(Source("tiny", GOLDEN / "tiny-sdxl"), torch.device("cpu"), dtype, 0, "attention")


@pytest.fixture(scope="session")
def tiny() -> Model:
    return _tiny(torch.float32)


@pytest.fixture(scope="session")
def tiny_double() -> Model:
    return _tiny(torch.float64)


@pytest.fixture
def pipeline() -> Iterator[Any]:
    """diffusers' own pipeline on the tiny checkpoint."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    made = StableDiffusionXLPipeline.from_pretrained(GOLDEN / "tiny-sdxl", local_files_only=True)
    made.set_progress_bar_config(disable=True)
    yield made


@pytest.fixture(scope="session")
def concepts() -> Mapping[str, Concept]:
    """Two members' concepts: a is a man, b a woman."""
    return {
        member: replace(load_concept(GOLDEN / f"{name}.safetensors", name, name), class_name=CLASSES[name])
        for member, name in (("a", "char_a"), ("b", "char_b"))
    }


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A user's library: both concepts with a card that says what they are."""
    folder = tmp_path / "library"
    folder.mkdir()
    for name, class_name in CLASSES.items():
        card = json.dumps({"class_name": class_name, "trigger": name[-1], "family": "sdxl"})
        save_file(load_file(GOLDEN / f"{name}.safetensors"), folder / f"{name}.safetensors", metadata={"costars": card})
    return folder


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    """A settled scene of two on the tiny checkpoint, 64 x 64 px and 10 steps unless told otherwise."""

    def make(**changes: Any) -> Scene:
        data = {
            "prompt": "photo of {a} and {b} in the forest",
            "cast": {"a": {"concept": "char_a"}, "b": {"concept": "char_b"}},
            "model": str(GOLDEN / "tiny-sdxl"),
            "size": (64, 64),
            "steps": 10,
            "segmenter": "attention",
        }
        return parse_scene(data | changes).settled()

    return make


@pytest.fixture(scope="session")
def make_region() -> Callable[..., Region]:
    """A region that fills a box (left, top, right, bottom) of a 64 x 64 picture."""

    def make(class_name: str, box: tuple[float, ...], score: float = 1.0, depth: int = 0, size: int = 64) -> Region:
        left, top, right, bottom = (round(v * size) for v in box)
        mask = np.zeros((size, size), dtype=np.float32)
        mask[top:bottom, left:right] = 1
        return Region(class_name, mask, score, depth)

    return make


@pytest.fixture(scope="session")
def finish() -> Callable[[Generator[Any, None, Any]], tuple[Any, Any]]:
    """Run a loop to its end: what it returned, and its last step (None if it took none)."""

    def run(steps: Generator[Any, None, Any]) -> tuple[Any, Any]:
        step = None
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                return done.value, step

    return run


@pytest.fixture(scope="session")
def trace() -> Callable[..., dict[str, Any]]:
    """Everything of a module that a patch could leave something in."""

    def of(module: torch.nn.Module) -> dict[str, Any]:
        weights = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in module.state_dict().items()}
        hooks = {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in module.named_modules()
        }
        return {
            "weights": weights,
            "hooks": hooks,
            "types": {name: type(m) for name, m in module.named_modules()},
            "gradients": {name: p.requires_grad for name, p in module.named_parameters()},
            "processors": dict(getattr(module, "attn_processors", {})),
            "training": module.training,
            "attributes": sorted(vars(module)),
        }

    return of
