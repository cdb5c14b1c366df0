"""The segmenters by phrase from an image to regions, on tiny random models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from costars.errors import ModelError, SceneError
from costars.scene.scene import CastMember
from costars.segment import checkpoint_cache, grounded_sam
from costars.segment.checkpoint import open_checkpoint
from costars.segment.grounded_sam import GroundedSam
from costars.segment.match_cast import match_cast
from costars.segment.sam import SAM


def patch_open_checkpoint(monkeypatch, replacement) -> None:
    monkeypatch.setattr(checkpoint_cache, "open_checkpoint", replacement)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "most"), [("dino", 12), ("owl", 16), ("clipseg", 100)])
def test_regions_have_full_size_masks_and_requested_phrases(make_segmenter, make_image, make_layout, name, most, dtype):
    regions = make_segmenter(name, dtype)(make_layout(make_image()), ["woman", "dog", "woman"])
    assert 0 < len(regions) <= most
    for region in regions:
        assert region.mask.shape == (48, 80) and region.mask.dtype == np.float32
        assert set(np.unique(region.mask)) == {0.0, 1.0}
        assert region.class_name in ("woman", "dog") and 0 < region.score <= 1
    assert sorted(region.depth for region in regions) == list(range(len(regions)))


@pytest.mark.parametrize("name", ["dino", "owl", "clipseg"])
def test_no_phrase_or_no_score_above_the_threshold_gives_no_region(
    make_segmenter, make_image, make_layout, name, monkeypatch
):
    everything = make_segmenter(name)
    assert everything(make_layout(make_image()), []) == []
    strict = {"threshold": 1.0} if name == "clipseg" else {"box_threshold": 1.0}

    def never_sam(kind, *args, **options):
        assert kind is not SAM
        return open_checkpoint(kind, *args, **options)

    patch_open_checkpoint(monkeypatch, never_sam)
    assert replace(everything, **strict)(make_layout(make_image()), ["woman"]) == []


@pytest.mark.parametrize(("name", "count"), [("dino", 2), ("owl", 2), ("clipseg", 1)])
def test_models_are_loaded_once(make_segmenter, make_image, make_layout, name, count, monkeypatch):
    loaded = []

    def watched(kind, *args, **options):
        loaded.append(kind)
        return open_checkpoint(kind, *args, **options)

    patch_open_checkpoint(monkeypatch, watched)
    segmenter = make_segmenter(name)
    first, second = (segmenter(make_layout(make_image()), ["woman"]) for _ in range(2))
    assert len(loaded) == len({*loaded}) == count
    pairs = zip(first, second, strict=True)
    assert all(np.array_equal(a.mask, b.mask) and a.score == b.score for a, b in pairs)


def test_a_hub_id_is_looked_up_once(models, make_segmenter, make_image, make_layout, monkeypatch):
    names = []

    def download(name, patterns, *, offline):
        names.append(name)
        return models / name.partition("/")[2]

    monkeypatch.setattr("costars.segment.checkpoint.download_from_hub", download)
    segmenter = make_segmenter("dino", detector="org/dino", sam="org/sam")
    for _ in range(2):
        segmenter(make_layout(make_image()), ["woman"])
    assert names == ["org/dino", "org/sam"]


def test_detections_become_the_members_of_the_cast(
    load_tiny, stub_model, paint_boxes, make_image, make_layout, monkeypatch
):
    """From the detector's output to the cast; the last box is a duplicate of the first woman."""
    places = [(0.15, 0.5, 0.2, 0.6), (0.5, 0.6, 0.2, 0.7), (0.8, 0.6, 0.15, 0.4), (0.8, 0.61, 0.16, 0.42)]
    places.append((0.16, 0.5, 0.2, 0.6))
    probabilities = torch.zeros(1, 5, 16)
    probabilities[0, :, 1] = torch.tensor([0.9, 0.8, 0.1, 0.4, 0.7])  # [CLS] woman . dog . [SEP]
    probabilities[0, :, 3] = torch.tensor([0.1, 0.7, 0.6, 0.3, 0.1])
    out = {"pred_boxes": torch.tensor([places]), "logits": probabilities.logit(1e-6)}
    dino, sam = stub_model(load_tiny("dino"), lambda **_: out), stub_model(load_tiny("sam"), paint_boxes)
    monkeypatch.setattr(grounded_sam, "check_checkpoint", lambda kind, *_, **__: Path(kind.model_type))
    patch_open_checkpoint(monkeypatch, lambda kind, *_, **__: sam if kind is SAM else dino)
    scene = make_layout(make_image(96, 64))
    regions = GroundedSam(device=torch.device("cpu"), dtype=torch.float32, offline=True)(
        scene, ["woman", "dog", "woman"]
    )
    assert [r.class_name for r in regions] == [
        "woman",
        "woman",
        "woman",
        "dog",
    ]  # at the dog's place, detected as a woman; match_cast drops it
    classes = {"ana": "woman", "rex": "dog", "mia": "woman"}
    cast = {name: CastMember(concept="x") for name in classes}
    seen = match_cast(cast, classes, regions, scene)
    middles = {name: (region.box[0] + region.box[2]) / 2 for name, region in seen.items()}
    assert middles == pytest.approx({"ana": 0.15, "mia": 0.5, "rex": 0.8}, abs=0.05)


@pytest.mark.parametrize(
    ("name", "phrases", "message"),
    [
        ("dino", ["a red hat " * 5], "phrases 'a red hat .*': 18 tokens, .* at most 16; use shorter phrases"),
        ("dino", ["woman", " "], "phrase ' ' contains no word; name what to find, e.g. woman"),
        ("owl", [""], "phrase '' contains no word"),
        ("clipseg", ["--"], "phrase '--' contains no word"),
        ("owl", ["dog " * 40], "phrase 'a photo of a dog .*at most 16; use a shorter phrase"),
        ("clipseg", ["dog " * 40], "phrase 'dog .*at most 16; use a shorter phrase"),
    ],
)
def test_unusable_phrase_is_rejected(make_segmenter, make_image, make_layout, name, phrases, message):
    with pytest.raises(SceneError, match=message):
        make_segmenter(name)(make_layout(make_image()), phrases)


@pytest.mark.parametrize("name", ["dino", "owl", "clipseg"])
def test_non_finite_output_is_rejected(
    load_tiny, stub_model, make_segmenter, make_image, make_layout, name, monkeypatch
):
    out = {"pred_boxes": torch.zeros(1, 1, 4), "logits": torch.full((1, 1, 16), torch.nan)}
    broken = stub_model(load_tiny(name), lambda **_: out)
    patch_open_checkpoint(monkeypatch, lambda *_, **__: broken)
    with pytest.raises(ModelError, match=r"non-finite values in torch\.float32; use --dtype float32"):
        make_segmenter(name)(make_layout(make_image()), ["dog"])
