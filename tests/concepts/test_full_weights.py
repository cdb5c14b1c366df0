"""Full weights replace those of the model: Custom Diffusion's keys and values, and other layers."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from costars.concepts.import_file import ImportOptions, import_concept
from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.resolve import match_concepts


@pytest.fixture
def custom_diffusion(tiny, write, random):
    """(file as diffusers writes it, UNet with these weights)."""
    unet, tensors = copy.deepcopy(tiny.unet), {}
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            weight = module.weight.data + 0.05 * random(*module.weight.shape, seed=len(tensors))
            module.weight.data.copy_(weight)
            stem, _, last = name.rpartition(".")
            tensors[f"{stem}.processor.{last}_custom_diffusion.weight"] = weight
    return write(tensors, "toy", costars='{"family": "sdxl"}'), unet


def predict_noise(model, unet, adapter=None) -> torch.Tensor:
    text = model.encode_text("a man")
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": text.pooled, "time_ids": model.size_ids((64, 64))}
    with torch.no_grad(), one_adapter_per_row(unet, "unet.", {"own": adapter or {}}) as rows, rows.on(["own"]):
        return unet(sample, torch.tensor(500), text.tokens, added_cond_kwargs=added).sample


def test_keys_and_values_of_the_model_are_replaced(tiny, custom_diffusion):
    path, unet = custom_diffusion
    concept = load_concept(path, "toy", "toy")
    assert concept.format == "Custom Diffusion" and len(concept.weights) == 34 and not concept.adapter
    matched, notes, _ = match_concepts({"toy": concept}, tiny)
    assert notes == () and not matched["toy"].weights
    rules = {path: entry.parts[0][0] for path, entry in matched["toy"].adapter.items()}
    assert all(rules[path].tensors["weight"] is weight for path, weight in concept.weights.items())  # no copies
    ours = predict_noise(tiny, tiny.unet, matched["toy"].adapter)
    assert torch.allclose(ours, predict_noise(tiny, unet), atol=1e-5)
    assert not torch.allclose(ours, predict_noise(tiny, tiny.unet), atol=1e-3)


def test_import_with_its_textual_inversion(write, random, tmp_path):
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
    path = write(
        {f"{stem}.to_{k}_custom_diffusion.weight": random(320, 768, seed=i) for i, k in enumerate("kv")}, "toy"
    )
    embedding = write({"<toy>": random(1, 768)}, "embedding")
    made = import_concept(path, tmp_path / "library", ImportOptions(class_name="toy", embedding=embedding))
    assert (made.concept.trigger, made.concept.class_name) == ("<toy>", "toy")
    before = load_concept(path, "toy", "toy")
    assert before.family == made.concept.family == "sd15" and len(before.weights) == 2
    assert all(torch.equal(made.concept.weights[k], v) for k, v in before.weights.items())
    assert made.concept.words["<toy>"]["text_encoder"].shape == (1, 1, 768)


def test_embedding_must_be_a_textual_inversion(custom_diffusion, tmp_path):
    path, _ = custom_diffusion
    with pytest.raises(ConceptError, match=r"--words toy\.safetensors: expected a textual inversion"):
        import_concept(path, tmp_path / "library", ImportOptions(embedding=path))
    assert not (tmp_path / "library").exists()


def test_weights_of_another_model_are_rejected(tiny, write, random):
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
    path = write({key: random(7, 64)}, "toy", costars='{"family": "sdxl"}')
    with pytest.raises(ConceptError, match=r"'unet\.mid_block.*' is \(7, 64\), the model's is \(48, 64\)"):
        match_concepts({"toy": load_concept(path, "toy", "toy")}, tiny)


def test_bias_is_rejected(write, random):
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_custom_diffusion.0.bias"
    with pytest.raises(ConceptError, match="train only keys and values of cross-attention"):
        load_concept(write({key: random(48)}, "toy"), "toy", "toy")


def test_convolutions_and_text_encoder_layers_are_replaced(tiny, write, random):
    """As after training all weights; the path of the text encoder has the level text_model."""
    parts = {"unet": tiny.unet, **{e.name: e.module for e in tiny.encoders}}
    wanted = ["unet.conv_in", "unet.down_blocks.0.downsamplers.0.conv", "unet.mid_block.attentions.0.proj_in"]
    copies = {part: copy.deepcopy(module) for part, module in parts.items()}
    text_layer = "encoder.layers.0.mlp.fc1"
    tensors = {}
    for number, path in enumerate([*wanted, f"text_encoder.text_model.{text_layer}"]):
        part, _, name = path.partition(".")
        module = copies[part]
        layer = module.get_submodule(name if hasattr(module, "text_model") or part == "unet" else text_layer)
        layer.weight.data += 0.05 * random(*layer.weight.shape, seed=number)
        tensors[f"weights.{path}"] = layer.weight.data
    concept = load_concept(write(tensors, "toy", costars='{"family": "sdxl"}'), "toy", "toy")
    assert {t.ndim for t in concept.weights.values()} == {2, 4} and concept.format == "costars"
    adapter = match_concepts({"toy": concept}, tiny).concepts["toy"].adapter
    assert len(adapter) == len(tensors)
    assert torch.allclose(predict_noise(tiny, tiny.unet, adapter), predict_noise(tiny, copies["unet"]), atol=1e-5)
    ids = torch.tensor([[0, 5, 6, 1]])
    expected = copies["text_encoder"](ids).last_hidden_state
    with torch.no_grad(), text_adapter(tiny.encoders, adapter):
        ours = tiny.encoders[0].module(ids).last_hidden_state
    assert torch.allclose(ours, expected, atol=1e-5)
    assert not torch.allclose(ours, parts["text_encoder"](ids).last_hidden_state, atol=1e-4)


def test_empty_placeholders_are_ignored(custom_diffusion, write):
    path, _ = custom_diffusion
    tensors = load_file(path) | {"mid_block.attentions.0.transformer_blocks.0.attn1.processor": torch.zeros(0)}
    again = load_concept(write(tensors, "again", costars='{"family": "sdxl"}'), "again", "again")
    assert again.weights.keys() == load_concept(path, "toy", "toy").weights.keys() and not again.adapter


def test_file_of_placeholders_is_rejected(write):
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.processor"
    with pytest.raises(ConceptError, match="contains no adapter layers"):
        load_concept(write({key: torch.zeros(0)}, "toy"), "toy", "toy")


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("weights.unet.conv_in", (4, 4, 3), r"'weights\.unet\.conv_in' is not a finite weight of 2 or 4 axes"),
        ("weights.unet.conv_in", (4,), r"not a finite weight of 2 or 4 axes \(shape \(4,\)\); fetch the file again"),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor",
            (2, 2),
            r"contains 'mid_block.*attn1\.processor', which is not supported",
        ),
    ],
)
def test_invalid_weight_is_rejected(write, random, key, shape, expected):
    with pytest.raises(ConceptError, match=expected):
        load_concept(write({key: random(*shape)}, "toy"), "toy", "toy")
