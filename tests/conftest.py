"""What the tests share: a tiny SDXL checkpoint, two concepts made for it, scenes that use them, and captioners."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import settings
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from costars.concepts.load import load_concept
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.model import Model
from costars.scene.defaults import fill_defaults
from costars.scene.scene import Scene, parse_scene
from costars.types import Concept, Region

GOLDEN = Path(__file__).parent / "golden"
CLASSES = {"char_a": "man", "char_b": "woman"}

settings.register_profile("costars", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("costars")
torch.set_num_threads(1)  # the same sums in the same order on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in child processes too


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


_WORDS = "<pad> <s> </s> <unk> <image> a woman in the park with red hat What does image describe?".split()
_IDS = {"vocab_size": len(_WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 8}
_SIZE = {"height": 32, "width": 32}


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _WORDS, strict=False))
    special["extra_special_tokens"] = {"image_token": "<image>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def _save_blip(folder: Path) -> None:
    text = {**_SMALL, **_IDS, "sep_token_id": 2, "encoder_hidden_size": 16}
    config = hf.BlipConfig(text_config=text, vision_config=_VISION)
    hf.BlipForConditionalGeneration(config).save_pretrained(folder)
    hf.BlipImageProcessorPil(size=_SIZE).save_pretrained(folder)


def _save_blip2(folder: Path) -> None:
    text = {
        "model_type": "opt",
        **_SMALL,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 64,
        **_IDS,
    }
    former = {**_SMALL, "vocab_size": len(_WORDS)}
    config = hf.Blip2Config(
        text_config=text, vision_config=_VISION, qformer_config=former, num_query_tokens=4, image_token_index=4
    )
    hf.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    hf.BlipImageProcessorPil(size=_SIZE).save_pretrained(folder)


def _save_florence(folder: Path) -> None:
    """Its tower makes 8 x 8 cells of the picture, and a token of each and of their mean."""
    vision = {"depths": [1], "patch_size": [7], "patch_stride": [4], "patch_padding": [3], "patch_prenorm": [False]}
    vision |= {"embed_dim": [16], "num_heads": [2], "num_groups": [2], "window_size": 4, "projection_dim": 16}
    ends = {f"{end}coder_{what}": 1 for end in ("en", "de") for what in ("layers", "ffn_dim", "attention_heads")}
    text = {"model_type": "bart", "d_model": 16, "max_position_embeddings": 128, "decoder_start_token_id": 2} | ends
    config = hf.Florence2Config(vision_config=vision, text_config=text | _IDS, image_token_id=4)
    hf.Florence2ForConditionalGeneration(config).save_pretrained(folder)
    hf.CLIPImageProcessorPil(size=_SIZE, do_center_crop=False, image_seq_length=65).save_pretrained(folder)


@pytest.fixture(scope="session")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random captioning model of each family: blip, blip-2 and florence2."""
    root = tmp_path_factory.mktemp("captioners")
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, save in {"blip": _save_blip, "blip-2": _save_blip2, "florence2": _save_florence}.items():
        save(root / name)
        _tokenizer().save_pretrained(root / name)
    return root


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
        return fill_defaults(parse_scene(data | changes))

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


@pytest.fixture
def count_tensors() -> Callable[[], int]:
    """The number of tensors that anything refers to, those of models included."""

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    return count


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
