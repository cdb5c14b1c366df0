"""Custom Diffusion: keys and values that stand for the model's own, and the word that was taught beside them."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from costars.concepts.import_file import Naming, import_concept
from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.model.offload import Portion
from costars.resolve import fitted
from costars.sample.attention_processor import Moment
from costars.sample.batch import batch_of
from costars.types import Path


@pytest.fixture
def taught(tiny, write, random):
    """A file as diffusers writes it, and the UNet with these weights in place."""
    unet, tensors = copy.deepcopy(tiny.unet), {}
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            weight = module.weight.data + 0.05 * random(*module.weight.shape, seed=len(tensors))
            module.weight.data.copy_(weight)
            stem, _, last = name.rpartition(".")
            tensors[f"{stem}.processor.{last}_custom_diffusion.weight"] = weight
    return write(tensors, "toy", costars='{"family": "sdxl"}'), unet


def noise(model, unet, adapters=None):
    batch = batch_of(model, [Path("a", model.encode_text("a man"), adapter="own" if adapters else None)], (64, 64))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if adapters is None:
            added = dict(batch.added)
            return unet(latent, torch.tensor(500), batch.tokens, added_cond_kwargs=added).sample
        with one_adapter_per_row(unet, "unet.", {"own": adapters}) as rows:
            return batch.noise(model, latent, torch.tensor(500), Moment(), rows, (), Portion(0, model.device))


def test_the_models_own_keys_and_values_are_replaced(tiny, taught):
    path, unet = taught
    concept = load_concept(path, "toy", "toy")
    assert concept.format == "Custom Diffusion" and len(concept.weights) == 34 and not concept.adapter
    taken, notes, _ = fitted({"toy": concept}, tiny)
    assert notes == () and not taken["toy"].weights
    ranks = {min(e.down.shape[1], len(e.up)) for e in taken["toy"].adapter.values()}
    assert {len(e.down) for e in taken["toy"].adapter.values()} == ranks
    ours = noise(tiny, tiny.unet, taken["toy"].adapter)
    assert torch.allclose(ours, noise(tiny, unet), atol=1e-5)
    assert not torch.allclose(ours, noise(tiny, tiny.unet), atol=1e-3)


def test_with_its_word_it_is_imported_as_one_concept(write, random, tmp_path):
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
    path = write(
        {f"{stem}.to_{k}_custom_diffusion.weight": random(320, 768, seed=i) for i, k in enumerate("kv")}, "toy"
    )
    word = write({"<toy>": random(1, 768)}, "word")
    made = import_concept(path, tmp_path / "library", Naming(class_name="toy"), words=word)
    assert (made.concept.trigger, made.concept.class_name) == ("<toy>", "toy")
    before = load_concept(path, "toy", "toy")
    assert before.family == made.concept.family == "sd15" and len(before.weights) == 2
    assert all(torch.equal(made.concept.weights[k], v) for k, v in before.weights.items())
    assert made.concept.words["<toy>"]["text_encoder"].shape == (1, 1, 768)


def test_words_that_are_none_are_refused(taught, tmp_path):
    path, _ = taught
    with pytest.raises(ConceptError, match=r"--words toy\.safetensors: want a textual inversion"):
        import_concept(path, tmp_path / "library", Naming(), words=path)
    assert not (tmp_path / "library").exists()


def test_weights_of_another_model_are_refused(tiny, write, random):
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
    path = write({key: random(7, 64)}, "toy", costars='{"family": "sdxl"}')
    with pytest.raises(ConceptError, match=r"brings 'unet\.mid_block.*' of \(7, 64\), the model's is \(48, 64\)"):
        fitted({"toy": load_concept(path, "toy", "toy")}, tiny)


def test_a_bias_cannot_be_applied(write, random):
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_custom_diffusion.0.bias"
    with pytest.raises(ConceptError, match="train it on keys and values alone"):
        load_concept(write({key: random(48)}, "toy"), "toy", "toy")


def test_convolutions_and_text_layers_are_replaced_too(tiny, write, random):
    """As a training of all weights leaves them; the text encoder's path has the level that transformers took out."""
    parts = {"unet": tiny.unet, **{e.name: e.module for e in tiny.encoders}}
    wanted = ["unet.conv_in", "unet.down_blocks.0.downsamplers.0.conv", "unet.mid_block.attentions.0.proj_in"]
    copies = {part: copy.deepcopy(module) for part, module in parts.items()}
    own = "encoder.layers.0.mlp.fc1"
    tensors = {}
    for number, path in enumerate([*wanted, f"text_encoder.text_model.{own}"]):
        part, _, name = path.partition(".")
        module = copies[part]
        layer = module.get_submodule(name if hasattr(module, "text_model") or part == "unet" else own)
        layer.weight.data += 0.05 * random(*layer.weight.shape, seed=number)
        tensors[f"weights.{path}"] = layer.weight.data
    concept = load_concept(write(tensors, "toy", costars='{"family": "sdxl"}'), "toy", "toy")
    assert {t.ndim for t in concept.weights.values()} == {2, 4} and concept.format == "costars"
    adapter = fitted({"toy": concept}, tiny).concepts["toy"].adapter
    assert len(adapter) == len(tensors)
    assert torch.allclose(noise(tiny, tiny.unet, adapter), noise(tiny, copies["unet"]), atol=1e-5)
    ids = torch.tensor([[0, 5, 6, 1]])
    expected = copies["text_encoder"](ids).last_hidden_state
    with torch.no_grad(), text_adapter(tiny.encoders, adapter):
        ours = tiny.encoders[0].module(ids).last_hidden_state
    assert torch.allclose(ours, expected, atol=1e-5)
    assert not torch.allclose(ours, parts["text_encoder"](ids).last_hidden_state, atol=1e-4)


def test_a_layer_that_keeps_its_own_weight_may_say_so_with_nothing(taught, write):
    path, _ = taught
    held = load_file(path) | {"mid_block.attentions.0.transformer_blocks.0.attn1.processor": torch.zeros(0)}
    again = load_concept(write(held, "again", costars='{"family": "sdxl"}'), "again", "again")
    assert again.weights.keys() == load_concept(path, "toy", "toy").weights.keys() and not again.adapter


def test_a_file_of_nothing_else_is_refused(write):
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.processor"
    with pytest.raises(ConceptError, match="holds 'nothing at all'"):
        load_concept(write({key: torch.zeros(0)}, "toy"), "toy", "toy")


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [
        ("weights.unet.conv_in", (4, 4, 3), r"'weights\.unet\.conv_in' is no finite weight of 2 or 4 axes"),
        ("weights.unet.conv_in", (4,), r"no finite weight of 2 or 4 axes \(its shape: \(4,\)\); fetch the file again"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.processor", (2, 2), r"attn1\.processor', which costars"),
    ],
)
def test_what_is_no_weight_is_refused(write, random, key, shape, said):
    with pytest.raises(ConceptError, match=said):
        load_concept(write({key: random(*shape)}, "toy"), "toy", "toy")
