"""Saved concepts are lossless and take no more space than needed."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from costars.concepts.load import load_concept, read_card
from costars.concepts.saving import to_smallest_dtype, write_concept
from costars.errors import ConceptError
from costars.types import Concept, FullChange, LowRank, WeightRule

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONCEPT = Concept(name="mia", class_name="", trigger="", family="", adapter={}, source="mia", sha256="")


def equal(left: LowRank, right: LowRank) -> bool:
    return torch.equal(left.down, right.down) and torch.equal(left.up, right.up)


def test_adapter_embeddings_and_weights_are_read_back(random, tmp_path):
    concept = replace(
        CONCEPT,
        adapter={LAYER: LowRank(random(3, 6), random(5, 3) / 3)},
        tokens={"<mia>": {"text_encoder": random(2, 8)}},
        weights={"unet.conv_in": random(4, 4, 3, 3)},
    )
    write_concept(concept, {"trigger": "<mia>"}, tmp_path / "deep" / "mia.safetensors")
    loaded = load_concept(tmp_path / "deep" / "mia.safetensors", "mia", "mia")
    assert loaded.adapter.keys() == {LAYER} and equal(loaded.adapter[LAYER], concept.adapter[LAYER])
    assert torch.equal(loaded.tokens["<mia>"]["text_encoder"], concept.tokens["<mia>"]["text_encoder"])
    assert torch.equal(loaded.weights["unet.conv_in"], concept.weights["unet.conv_in"])
    assert (loaded.trigger, loaded.format) == ("<mia>", "costars")
    assert read_card(tmp_path / "deep" / "mia.safetensors") == json.loads('{"trigger": "<mia>"}')


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (torch.tensor([0.5, 1.0]), torch.float16),
        (torch.tensor([1e6]).bfloat16().float(), torch.bfloat16),
        (torch.tensor([1 / 3]), torch.float32),
    ],
)
def test_smallest_dtype_is_exact(tensor, dtype):
    small = to_smallest_dtype(tensor)
    assert small.dtype is dtype and torch.equal(small.float(), tensor)


@pytest.mark.parametrize(("alpha", "rank"), [(1, 4), (1, 128), (16, 4), (0.25, 64)])
def test_scaled_half_precision_stays_half_precision(random, tmp_path, alpha, rank):
    """Small values times alpha / rank are below the resolution of float16, so the scale is stored as an alpha."""
    up = (random(5, rank) / 1000).half().float()
    entry = LowRank(random(rank, 6).half().float(), up * alpha / rank)
    path = tmp_path / "mia.safetensors"
    write_concept(replace(CONCEPT, adapter={LAYER: entry}), {}, path)
    assert equal(load_concept(path, "mia", "mia").adapter[LAYER], entry)
    stored = load_file(path)
    assert {t.dtype for key, t in stored.items() if not key.endswith(".alpha")} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_and_whole_changes_are_kept(random, tmp_path, dtype):
    weight, change = random(5, 6).to(dtype), random(5, 6, seed=1).to(dtype)
    whole = FullChange(((WeightRule("difference", {"diff": change}), 1.0),))
    weights = {"unet.mid_block.attentions.0.proj_in": weight}
    concept = replace(CONCEPT, adapter={LAYER: whole}, weights=weights)
    write_concept(concept, {"family": "sdxl"}, tmp_path / "mia.safetensors")
    again = load_concept(tmp_path / "mia.safetensors", "mia", "mia")
    ((rule, _),) = again.adapter[LAYER].parts
    assert rule.kind == "difference" and torch.equal(rule.tensors["diff"], change)
    assert torch.equal(again.weights["unet.mid_block.attentions.0.proj_in"], weight) and again.family == "sdxl"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"changes.lokr.w1.{LAYER}", "has the changes lokr (w1), expected the tensors of one kind"),
        (f"changes.magic.w1.{LAYER}", "has the changes magic (w1), expected"),
        ("changes.lokr", "layer '' has the changes lokr (), expected"),
    ],
)
def test_damaged_whole_changes_are_rejected(write, key, expected):
    with pytest.raises(ConceptError) as caught:
        load_concept(write({key: torch.ones(2, 2)}), "mine", "mine")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
