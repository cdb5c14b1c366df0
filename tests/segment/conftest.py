"""Tiny random models of every kind of vision checkpoint, and stand-ins for their outputs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from costars.segment.checkpoint import Checkpoint, open_checkpoint
from costars.segment.clipseg import CLIPSEG, ClipSeg
from costars.segment.detectors import GROUNDING_DINO, OWLV2
from costars.segment.grounded_sam import GroundedSam, OwlSam
from costars.segment.sam import SAM
from costars.types import Layout

CPU = torch.device("cpu")
TOKENIZER = Path(__file__).parents[1] / "golden" / "tiny-sdxl" / "tokenizer"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
# BERT's own ids of the special tokens: GroundingDINO separates phrases at 101, 102, 1012 and 1029.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
WORDS = [SPECIAL.get(i, f"[unused{i}]") for i in range(1030)] + "a woman man dog in red the hat ##s".split()


def save_dino(folder: Path) -> None:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    swin = {"image_size": 32, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2}
    ends = {f"{end}coder_{what}": n for end in ("en", "de") for what, n in (("ffn_dim", 16), ("attention_heads", 2))}
    config = hf.GroundingDinoConfig(
        backbone_config=hf.SwinConfig(out_indices=[2, 3, 4], **swin),
        text_config=hf.BertConfig(vocab_size=len(WORDS), num_hidden_layers=1, **SMALL),
        **{"num_queries": 12, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "max_text_len": 16},
        **ends,
    )
    hf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    hf.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def save_owl(folder: Path) -> None:
    text = {"vocab_size": 595, "bos_token_id": 593, "eos_token_id": 594, "max_position_embeddings": 16}
    config = hf.Owlv2Config(
        text_config={"num_hidden_layers": 1, **text, **SMALL},
        vision_config={"num_hidden_layers": 1, "image_size": 32, "patch_size": 8, **SMALL},
        projection_dim=16,
    )
    model = hf.Owlv2ForObjectDetection(config)
    with torch.no_grad():  # otherwise most scores are 0 or 1 and phrases hardly differ
        model.class_head.logit_scale.weight.mul_(0.1)
        model.class_head.logit_shift.weight.mul_(0.1)
    model.save_pretrained(folder)
    hf.Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    hf.CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)


def save_clipseg(folder: Path) -> None:
    text = {"vocab_size": 595, "bos_token_id": 593, "eos_token_id": 594, "max_position_embeddings": 16}
    config = hf.CLIPSegConfig(
        text_config={"num_hidden_layers": 2, **text, **SMALL},
        vision_config={"num_hidden_layers": 2, "image_size": 32, "patch_size": 8, **SMALL},
        **{"projection_dim": 16, "extract_layers": [0, 1], "reduce_dim": 8, "decoder_num_attention_heads": 2},
    )
    hf.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    hf.CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)


def save_sam(folder: Path) -> None:
    """SAM for images of 64 px on the longer side, with masks of 16 x 16."""
    sizes = {"image_size": 64, "patch_size": 16}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
    windows = {"window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 4}
    config = hf.SamConfig(
        vision_config={"hidden_size": 16, "output_channels": 8, **small, **sizes, **windows},
        prompt_encoder_config={"hidden_size": 8, "mask_input_channels": 4, **sizes},
        mask_decoder_config={"hidden_size": 8, "iou_head_hidden_dim": 8, **small},
    )
    hf.SamModel(config).save_pretrained(folder)
    square = {"pad_size": {"height": 64, "width": 64}, "mask_pad_size": {"height": 16, "width": 16}}
    hf.SamImageProcessorPil(size={"longest_edge": 64}, **square).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with a tiny random model of each kind."""
    root = tmp_path_factory.mktemp("models")
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, save in (("dino", save_dino), ("owl", save_owl), ("clipseg", save_clipseg), ("sam", save_sam)):
        save(root / name)
    return root


@pytest.fixture(scope="session")
def load_tiny(models) -> Callable[[str], Checkpoint]:
    """Load a tiny model by name, each once."""
    kinds = {"dino": GROUNDING_DINO, "owl": OWLV2, "clipseg": CLIPSEG, "sam": SAM}
    return cache(lambda name: open_checkpoint(kinds[name], str(models / name), CPU, torch.float32, offline=True))


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """Make a noise image."""

    def make(width: int = 80, height: int = 48) -> Image.Image:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def make_layout() -> Callable[[Image.Image], Layout]:
    """Make a layout that has only an image."""
    return lambda image: Layout(image, torch.zeros(1), {}, "", 0)


@pytest.fixture(scope="session")
def make_segmenter(models: Path) -> Callable[..., GroundedSam | OwlSam | ClipSeg]:
    """Make a segmenter that accepts every score by default."""

    def make(name: str, dtype: torch.dtype = torch.float32, **changes):
        common = {"device": CPU, "dtype": dtype, "offline": True}
        sam = {"sam": str(models / "sam"), "box_threshold": 0.0}
        match name:
            case "dino":
                return GroundedSam(**{**common, "detector": str(models / "dino"), **sam, **changes})
            case "owl":
                return OwlSam(**{**common, "detector": str(models / "owl"), **sam, **changes})
            case _:
                return ClipSeg(**{**common, "model": str(models / "clipseg"), "threshold": 0.0, **changes})

    return make


@dataclass
class Stub:
    """A model that returns the answer made from its inputs."""

    answer: Callable
    config: object = None
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def __call__(self, **inputs):
        return SimpleNamespace(**self.answer(**inputs))


@pytest.fixture(scope="session")
def stub_model() -> Callable[[Checkpoint, Callable], Checkpoint]:
    """Replace a checkpoint's model by a stub."""
    return lambda real, answer: replace(real, model=Stub(answer, real.model.config))


@pytest.fixture(scope="session")
def paint_boxes() -> Callable[..., dict]:
    """A SAM that fills each box (in its 64 px image) on its 16 x 16 grid."""

    def answer(input_boxes, **_) -> dict:
        masks = torch.full((1, input_boxes.shape[1], 1, 16, 16), -1.0)
        for i, (left, top, right, bottom) in enumerate((input_boxes[0] / 4).round().int().tolist()):
            masks[0, i, 0, top:bottom, left:right] = 1
        return {"pred_masks": masks}

    return answer
