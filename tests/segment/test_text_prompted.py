"""Segmenters by phrase: boxes and masks are in their place, every figure is its phrase's, models come and go."""

import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from costars.errors import ModelError, SceneError
from costars.scene.scene import CastMember
from costars.segment import checkpoint as checkpoints
from costars.segment import grounded_sam as text_prompted
from costars.segment.checkpoint import Checkpoint, open_checkpoint
from costars.segment.detectors import GROUNDING_DINO, OWLV2, Detection, grounding_dino, owlv2, select, suppress
from costars.segment.grounded_sam import (
    CLIPSEG,
    SAM,
    ClipSeg,
    GroundedSam,
    OwlSam,
    by_depth,
    segment_boxes,
    unique_phrases,
)
from costars.segment.match_cast import assign
from costars.types import Layout

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
# BERT's own places of the special tokens: GroundingDINO parts phrases at 101, 102, 1012 and 1029.
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
    with torch.no_grad():  # else most scores are 0 or 1 and phrases hardly differ
        model.class_head.logit_scale.weight.mul_(0.1)
        model.class_head.logit_shift.weight.mul_(0.1)
    model.save_pretrained(folder)
    hf.Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    hf.CLIPTokenizer.from_pretrained(GOLDEN / "tiny-sdxl" / "tokenizer").save_pretrained(folder)


def save_clipseg(folder: Path) -> None:
    text = {"vocab_size": 595, "bos_token_id": 593, "eos_token_id": 594, "max_position_embeddings": 16}
    config = hf.CLIPSegConfig(
        text_config={"num_hidden_layers": 2, **text, **SMALL},
        vision_config={"num_hidden_layers": 2, "image_size": 32, "patch_size": 8, **SMALL},
        **{"projection_dim": 16, "extract_layers": [0, 1], "reduce_dim": 8, "decoder_num_attention_heads": 2},
    )
    hf.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    hf.CLIPTokenizer.from_pretrained(GOLDEN / "tiny-sdxl" / "tokenizer").save_pretrained(folder)


def save_sam(folder: Path) -> None:
    """A picture's longer side is 64 px to it, and its masks are 16 x 16."""
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


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a tiny random model of each kind."""
    root = tmp_path_factory.mktemp("models")
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, save in (("dino", save_dino), ("owl", save_owl), ("clipseg", save_clipseg), ("sam", save_sam)):
        save(root / name)
    return root


@pytest.fixture(scope="module")
def opened(models) -> Callable[[str], Checkpoint]:
    """The models by name, each loaded once."""
    kinds = {"dino": GROUNDING_DINO, "owl": OWLV2, "clipseg": CLIPSEG, "sam": SAM}
    return cache(lambda name: open_checkpoint(kinds[name], str(models / name), CPU, torch.float32, offline=True))


def picture(width: int = 80, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def layout(image: Image.Image) -> Layout:
    return Layout(image, torch.zeros(1), {}, "", 0)


def segmenter(models: Path, name: str, dtype: torch.dtype = torch.float32, **changes):
    """One that takes everything for a figure, unless told otherwise."""
    sam = {"sam": str(models / "sam"), "box_threshold": 0.0}
    match name:
        case "dino":
            made = GroundedSam(CPU, dtype, True, str(models / "dino"), **sam)
        case "owl":
            made = OwlSam(CPU, dtype, True, str(models / "owl"), **sam)
        case _:
            made = ClipSeg(CPU, dtype, True, str(models / "clipseg"), threshold=0.0)
    return replace(made, **changes)


@dataclass
class Stub:
    """Stands in for a model: answers with what it is given, or what a function makes of its inputs."""

    answer: Callable
    config: object = None
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def __call__(self, **inputs):
        return SimpleNamespace(**self.answer(**inputs))


def stubbed(real: Checkpoint, answer: Callable) -> Checkpoint:
    return replace(real, model=Stub(answer, real.model.config))


def painter(input_boxes, **_) -> dict:
    """A SAM that paints each box (in its 64 px picture) on its 16 x 16 grid."""
    count = input_boxes.shape[1]
    masks = torch.full((1, count, 1, 16, 16), -1.0)
    for i, (left, top, right, bottom) in enumerate((input_boxes[0] / 4).round().int().tolist()):
        masks[0, i, 0, top:bottom, left:right] = 1
    return {"pred_masks": masks}


# The whole path on tiny random models.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "most"), [("dino", 12), ("owl", 16), ("clipseg", 100)])
def test_regions_are_masks_on_the_pictures_grid_with_a_phrase_that_was_asked_for(models, name, most, dtype):
    regions = segmenter(models, name, dtype)(layout(picture()), ["woman", "dog", "woman"])
    assert 0 < len(regions) <= most
    for region in regions:
        assert region.mask.shape == (48, 80) and region.mask.dtype == np.float32
        assert set(np.unique(region.mask)) == {0.0, 1.0}
        assert region.class_name in ("woman", "dog") and 0 < region.score <= 1
    assert sorted(region.depth for region in regions) == list(range(len(regions)))


@pytest.mark.parametrize("name", ["dino", "owl", "clipseg"])
def test_nothing_asked_or_nothing_above_the_threshold_is_no_region(models, name, monkeypatch):
    everything = segmenter(models, name)
    assert everything(layout(picture()), []) == []
    strict = {"threshold": 1.0} if name == "clipseg" else {"box_threshold": 1.0}

    def never_sam(kind, *args, **options):
        assert kind is not SAM
        return open_checkpoint(kind, *args, **options)

    monkeypatch.setattr(text_prompted, "open_checkpoint", never_sam)
    assert replace(everything, **strict)(layout(picture()), ["woman"]) == []


@pytest.mark.parametrize("name", ["dino", "owl", "clipseg"])
def test_no_model_stays_and_the_detector_is_gone_before_sam_comes(models, name, monkeypatch):
    made: list[weakref.ref] = []

    def watched(*args, **options):
        assert [model() for model in made] == [None] * len(made)
        checkpoint = open_checkpoint(*args, **options)
        made.append(weakref.ref(checkpoint.model))
        return checkpoint

    monkeypatch.setattr(text_prompted, "open_checkpoint", watched)
    segmenter(models, name)(layout(picture()), ["woman"])
    assert [model() for model in made] == [None] * (1 if name == "clipseg" else 2)


def test_a_phrase_that_is_asked_for_twice_is_looked_for_once():
    assert unique_phrases(["woman", "dog", "woman"]) == ["woman", "dog"]


# Boxes.


def test_grounding_dinos_boxes_are_those_of_transformers_and_a_phrases_score_is_its_best_tokens(opened):
    dino, image = opened("dino"), picture(80, 48)
    boxes, scores = grounding_dino(dino, image, ["Woman", "red dog"])
    processor = hf.GroundingDinoProcessor(dino.images, dino.tokenizer)
    inputs = processor(images=image, text="woman. red dog.", return_tensors="pt")
    out = dino.model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(out, threshold=0.0, target_sizes=[(48, 80)])
    assert np.allclose(boxes * [80, 48, 80, 48], theirs["boxes"], atol=1e-3)
    # [CLS] woman . red dog . [SEP]
    chances = out.logits[0].sigmoid().numpy()
    assert np.allclose(scores, np.stack([chances[:, 1], chances[:, [3, 4]].max(axis=1)], axis=1), atol=1e-6)
    assert (chances[:, [0, 2, 5, 6]].max(axis=1) > scores.max(axis=1)).any()  # else special tokens were untested


def test_owls_boxes_scores_and_phrases_are_those_of_transformers(opened):
    owl, image, phrases = opened("owl"), picture(48, 80), ["woman", "dog", "hat"]
    boxes, scores = owlv2(owl, image, phrases, "a photo of a {}")
    processor = hf.Owlv2Processor(owl.images, owl.tokenizer)
    texts = [f"a photo of a {phrase}" for phrase in phrases]
    inputs = processor(images=image, text=[texts], max_length=16, return_tensors="pt")
    (theirs,) = processor.post_process_grounded_object_detection(
        owl.model(**inputs), threshold=0.0, target_sizes=[(80, 48)], text_labels=[texts]
    )
    assert np.allclose(boxes * [48, 80, 48, 80], theirs["boxes"], atol=1e-3)
    assert np.allclose(scores.max(axis=1), theirs["scores"], atol=1e-6)
    assert [texts[i] for i in scores.argmax(axis=1)] == theirs["text_labels"]


@pytest.mark.parametrize("name", ["dino", "owl"])
def test_a_phrases_scores_are_its_own_in_whatever_order_phrases_are_asked(opened, name):
    one = opened(name)

    def asked(*phrases):
        return grounding_dino(one, picture(), phrases) if name == "dino" else owlv2(one, picture(), phrases, "{}")

    _, ab = asked("woman", "red dog")
    _, ba = asked("red dog", "woman")
    assert np.abs(ab[:, 0] - ab[:, 1]).max() > 1e-3
    assert np.allclose(ab, ba[:, ::-1], atol=1e-4)


@pytest.mark.parametrize("name", ["dino", "owl"])
def test_a_box_of_the_models_output_is_where_it_should_be_on_a_picture_that_is_not_square(opened, name):
    """Left 20, top 10, right 60, bottom 30 on 80 x 40 px; OWLv2 counts in shares of 80 x 80."""
    centre = (0.5, 0.5, 0.5, 0.5) if name == "dino" else (0.5, 0.25, 0.5, 0.25)
    out = {"pred_boxes": torch.tensor([[centre]]), "logits": torch.zeros(1, 1, 16 if name == "dino" else 1)}
    one = stubbed(opened(name), lambda **_: out)
    find = grounding_dino if name == "dino" else lambda *given: owlv2(*given, "{}")
    boxes, scores = find(one, picture(80, 40), ["dog"])
    assert (boxes * [80, 40, 80, 40]).tolist() == [[20, 10, 60, 30]]
    assert scores.tolist() == [[0.5]]


def test_every_instance_of_a_phrase_is_found_once_and_a_box_is_its_best_phrases_alone():
    boxes = [
        (0.0, 0.2, 0.2, 0.8),
        (0.02, 0.2, 0.2, 0.8),  # the first again
        (0.4, 0.2, 0.6, 0.8),
        (0.4, 0.2, 0.6, 0.8),  # the same place, another phrase
        (0.9, 0.5, 1.3, 1.2),  # reaches out of the picture
        (0.2, 1.1, 0.4, 1.3),  # lies outside it
        (0.7, 0.2, 0.8, 0.8),  # too weak
    ]
    scores = [(0.6, 0.5), (0.8, 0.1), (0.7, 0.2), (0.3, 0.4), (0.5, 0.4), (0.9, 0.1), (0.3, 0.2)]
    found = select(np.array(boxes, np.float32), np.array(scores, np.float32), ["woman", "man"], 0.3, 0.5)
    assert [(d.phrase, pytest.approx(d.score)) for d in found] == [
        ("woman", 0.8),
        ("woman", 0.7),
        ("woman", 0.5),
        ("man", 0.4),
    ]
    assert [d.box for d in found] == [pytest.approx(b) for b in (boxes[1], boxes[2], (0.9, 0.5, 1.0, 1.0), boxes[3])]


corner = st.integers(0, 9)
cells = st.tuples(corner, corner, st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def painted(box: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((16, 16), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@given(st.lists(cells, min_size=1, max_size=12), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.randoms())
def test_a_box_goes_exactly_if_it_overlaps_a_better_one_that_stays(places, most, random):
    scores = [i / 100 for i in range(len(places))]
    random.shuffle(scores)
    kept = suppress(np.array(places, np.float32), np.array(scores, np.float32), most)
    assert [scores[i] for i in kept] == sorted((scores[i] for i in kept), reverse=True)
    assert scores[kept[0]] == max(scores)
    shapes = [painted(place) for place in places]
    for i, shape in enumerate(shapes):
        better = [shapes[j] for j in kept if scores[j] > scores[i]]
        overlaps = [(shape & other).sum() / (shape | other).sum() for other in better]
        assert (i in kept) == all(overlap <= most + 1e-6 for overlap in overlaps)


# Masks.


@given(st.lists(cells, min_size=1, max_size=4), st.sampled_from([(128, 128), (128, 96), (96, 128), (64, 32), (48, 64)]))
def test_a_mask_is_where_its_box_is_whatever_the_pictures_shape(opened, places, size):
    """Boxes are multiples of SAM's cells (1/16 of the longer side), so its painted masks fill them exactly."""
    width, height = size
    cell = max(size) // 16
    places = [p for p in places if p[2] * cell <= width and p[3] * cell <= height]
    boxes = [tuple(v * cell / side for v, side in zip(p, size * 2, strict=True)) for p in places]
    found = [Detection("dog", box, 0.5) for box in boxes]
    regions = segment_boxes(stubbed(opened("sam"), painter), picture(*size), found, 0.0) if found else []
    assert len(regions) == len(found)
    for region, box in zip(regions, boxes, strict=True):
        assert region.mask.shape == (height, width)
        assert np.abs(np.subtract(region.box, box)).max() <= 1.01 / min(size)


def test_sam_is_asked_for_one_figure_a_box_and_an_empty_one_is_no_region(opened):
    def answer(input_boxes, multimask_output, **_):
        assert not multimask_output
        masks = torch.full((1, 2, 1, 16, 16), -1.0)
        masks[0, 0, 0, 4:12, 4:8] = 1
        return {"pred_masks": masks}

    found = [Detection("dog", (0.1, 0.1, 0.5, 0.9), 0.4), Detection("man", (0.5, 0.5, 0.9, 0.9), 0.6)]
    (region,) = segment_boxes(stubbed(opened("sam"), answer), picture(64, 64), found, 0.0)
    expected = np.zeros((64, 64), np.float32)
    expected[16:48, 16:32] = 1
    assert (region.class_name, region.score) == ("dog", 0.4)
    assert (region.mask != expected).sum() <= 4  # bilinear: corners are round


def test_clipsegs_pieces_are_figures_in_their_place_each_pixel_its_best_phrases_and_specks_none(opened):
    """The picture is 64 x 32 px, CLIPSeg's map of it 32 x 32."""
    logits = torch.full((2, 32, 32), -4.0)
    logits[0, 8:24, 4:8] = logits[0, 4:30, 20:28] = 4
    logits[1, 8:24, 4:8] = 1  # dogs too, but less so
    logits[1, 10:20, 11:15] = 4
    logits[0, 2, 12] = 4
    clipseg = stubbed(opened("clipseg"), lambda pixel_values, **_: {"logits": logits})
    maps = text_prompted.phrase_maps(clipseg, picture(64, 32), ["woman", "dog"])
    assert maps.shape == (2, 32, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_prompted, "check_checkpoint", lambda *_, **__: None)
        patch.setattr(text_prompted, "open_checkpoint", lambda *_, **__: clipseg)
        regions = ClipSeg(CPU, torch.float32, offline=True)(layout(picture(64, 32)), ["woman", "dog"])
    boxes = {("woman", 0): (20, 4, 28, 30), ("woman", 1): (4, 8, 8, 24), ("dog", 2): (11, 10, 15, 20)}
    assert {(r.class_name, r.depth): r.box for r in regions} == {
        key: pytest.approx([side / 32 for side in box]) for key, box in boxes.items()
    }
    for region in regions:
        inside = maps[0 if region.class_name == "woman" else 1][region.mask > 0]
        assert region.score == pytest.approx(inside.mean()) and inside.min() > 0.5


def test_who_reaches_lower_is_nearer_and_of_two_alike_the_larger(make_region):
    boxes = [(0.3, 0.5, 0.4, 1.0), (0.0, 0.1, 0.2, 0.7), (0.5, 0.2, 0.9, 1.0), (0.6, 0.0, 0.9, 0.3)]
    assert [region.depth for region in by_depth([make_region("man", box) for box in boxes])] == [1, 2, 0, 3]


def test_two_women_and_a_dog_each_become_a_member(opened, monkeypatch):
    """From the detector's output to the cast; the last box is the first woman once more."""
    places = [(0.15, 0.5, 0.2, 0.6), (0.5, 0.6, 0.2, 0.7), (0.8, 0.6, 0.15, 0.4), (0.8, 0.61, 0.16, 0.42)]
    places.append((0.16, 0.5, 0.2, 0.6))
    chances = torch.zeros(1, 5, 16)
    chances[0, :, 1] = torch.tensor([0.9, 0.8, 0.1, 0.4, 0.7])  # [CLS] woman . dog . [SEP]
    chances[0, :, 3] = torch.tensor([0.1, 0.7, 0.6, 0.3, 0.1])
    out = {"pred_boxes": torch.tensor([places]), "logits": chances.logit(1e-6)}
    dino, sam = stubbed(opened("dino"), lambda **_: out), stubbed(opened("sam"), painter)
    monkeypatch.setattr(text_prompted, "check_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(text_prompted, "open_checkpoint", lambda kind, *_, **__: sam if kind is SAM else dino)
    scene = layout(picture(96, 64))
    regions = GroundedSam(CPU, torch.float32, offline=True)(scene, ["woman", "dog", "woman"])
    assert [r.class_name for r in regions] == [
        "woman",
        "woman",
        "woman",
        "dog",
    ]  # the dog's place, seen as a woman: assign drops it
    classes = {"ana": "woman", "rex": "dog", "mia": "woman"}
    cast = {name: CastMember(concept="x") for name in classes}
    seen = assign(cast, classes, regions, scene)
    middles = {name: (region.box[0] + region.box[2]) / 2 for name, region in seen.items()}
    assert middles == pytest.approx({"ana": 0.15, "mia": 0.5, "rex": 0.8}, abs=0.05)


# Checkpoints.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_still_and_in_the_dtype_that_was_asked_for(models, dtype):
    model = open_checkpoint(SAM, str(models / "sam"), CPU, dtype, offline=True).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def folder_of(models: Path, name: str, target: Path) -> Path:
    shutil.copytree(models / name, target)
    return target


def refused(kind: checkpoints.Kind, where: Path | str, *, offline: bool = True) -> str:
    with pytest.raises(ModelError) as error:
        open_checkpoint(kind, str(where), CPU, torch.float32, offline=offline)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert refused(SAM, "some/sam") == (
        "model 'some/sam': no such folder, not in the Hugging Face cache, and costars is offline; "
        "fetch it once with a network, or give a folder"
    )
    assert "no such folder; give one" in refused(SAM, __file__)
    assert refused(SAM, "/no/where") == (
        "model '/no/where': no such folder; give one, or a hub id such as facebook/sam-vit-huge"
    )
    monkeypatch.setattr(
        "costars.model.hub.list_repo_files", lambda *_, **__: (_ for _ in ()).throw(OSError("no\nroute"))
    )
    assert "not to be had from the hub (no route); check the id" in refused(SAM, "some/sam", offline=False)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(("name", "revision"), [("some/sam", None), ("some/sam@v1", "v1")])
def test_a_hub_id_is_fetched_only_if_allowed_at_its_revision_and_never_a_pickle(
    models, name, revision, offline, monkeypatch
):
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(models / "sam")

    monkeypatch.setattr("costars.model.hub.snapshot_download", download)
    there = {None: ["model.safetensors"], "v1": ["model.safetensors", "model.fp16.safetensors"]}
    monkeypatch.setattr("costars.model.hub.list_repo_files", lambda repository, revision: there[revision])
    assert type(open_checkpoint(SAM, name, CPU, torch.float32, offline=offline).model) is hf.SamModel
    options = {"revision": revision, "local_files_only": offline}
    options["allow_patterns"] = ["*.json", "*.txt", "*.safetensors"]
    options["ignore_patterns"] = ["model.fp16.safetensors"] if revision and not offline else []
    assert asked == [("some/sam", options)]


def test_a_hub_id_in_the_cache_needs_no_network(models, tmp_path, monkeypatch):
    repository, commit = tmp_path / "models--some--sam", "0" * 40
    (repository / "snapshots").mkdir(parents=True)
    folder_of(models, "sam", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert type(open_checkpoint(SAM, "some/sam", CPU, torch.float32, offline=True).model) is hf.SamModel


@pytest.mark.parametrize(
    ("kind", "name"), [(GROUNDING_DINO, "owl"), (OWLV2, "sam"), (SAM, "clipseg"), (CLIPSEG, "dino")]
)
def test_a_model_of_another_kind_says_which_it_is_and_which_is_wanted(models, kind, name):
    found = {"owl": "owlv2", "sam": "sam", "clipseg": "clipseg", "dino": "grounding-dino"}[name]
    assert f"its model_type is {found}, want {kind.model_type}; give" in refused(kind, models / name)
    assert kind.example in refused(kind, models / name)


def test_pickles_are_not_read(models, tmp_path):
    folder = folder_of(models, "sam", tmp_path / "sam")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no .safetensors weights there, only pytorch_model.bin, and pickles are not read" in refused(SAM, folder)
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors", {"format": "pt"})
    assert "cannot be loaded (" in refused(SAM, folder)


def test_a_folder_that_is_damaged_or_not_whole_is_refused(models, tmp_path):
    folder = folder_of(models, "sam", tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    lost = sorted(name for name in weights if "mask_decoder" in name)[0]
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    assert f"lacks 1 weights, {lost} first" in refused(SAM, folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded (" in refused(SAM, folder)
    (folder / "config.json").write_text("{")
    assert "its config.json is damaged; fetch it again" in refused(SAM, folder)
    (folder / "config.json").unlink()
    assert "no config.json there; give a sam checkpoint such as facebook/sam-vit-huge" in refused(SAM, folder)


@pytest.mark.parametrize(
    ("name", "phrases", "message"),
    [
        ("dino", ["a red hat " * 5], "phrases 'a red hat .*': 18 tokens, .* at most 16; write shorter ones"),
        ("dino", ["woman", " "], "phrase ' ': holds no word; write what is to be found, such as woman"),
        ("owl", [""], "phrase '': holds no word"),
        ("clipseg", ["--"], "phrase '--': holds no word"),
        ("owl", ["dog " * 40], "phrase 'a photo of a dog .*at most 16; write a shorter one"),
        ("clipseg", ["dog " * 40], "phrase 'dog .*at most 16; write a shorter one"),
    ],
)
def test_a_phrase_that_cannot_be_read_is_refused_not_cut(models, name, phrases, message):
    with pytest.raises(SceneError, match=message):
        segmenter(models, name)(layout(picture()), phrases)


@pytest.mark.parametrize("name", ["dino", "owl", "clipseg"])
def test_numbers_that_are_not_finite_are_an_error_not_an_empty_picture(models, opened, name, monkeypatch):
    out = {"pred_boxes": torch.zeros(1, 1, 4), "logits": torch.full((1, 1, 16), torch.nan)}
    broken = stubbed(opened(name), lambda **_: out)
    monkeypatch.setattr(text_prompted, "open_checkpoint", lambda *_, **__: broken)
    with pytest.raises(ModelError, match=r"numbers that are not finite in torch\.float32; use float32"):
        segmenter(models, name)(layout(picture()), ["dog"])
