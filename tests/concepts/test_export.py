"""Exported concepts are read back unchanged by costars and by diffusers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from costars.concepts.export import FORMATS, export_concept
from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.model.adapters import subtract_base_weights
from costars.model.lora import one_adapter_per_row, text_adapter
from costars.sample.loop import denoise, prepare_sampler
from costars.types import Concept, DenoisingPath, LowRank

PROMPT = "a <mia> woman in the forest"


def make_concept(**parts) -> Concept:
    facts = {"class_name": "woman", "trigger": "mia", "family": "sdxl", "licence": "CC0-1.0", "adapter": {}}
    return Concept(**{"name": "mia", "source": "mia", "sha256": ""} | facts | parts)


def read_metadata(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def equal(left, right) -> bool:
    """Whether two adapters are equal."""
    same = [torch.equal(a.down, right[k].down) and torch.equal(a.up, right[k].up) for k, a in left.items()]
    return all(same) and left.keys() == right.keys()


@pytest.fixture
def lora(concepts) -> Concept:
    """A LoRA of UNet and text encoders; every third layer has half the rank."""
    adapter = {
        path: LowRank(entry.down[:1], entry.up[:, :1]) if i % 3 == 0 else entry
        for i, (path, entry) in enumerate(concepts["a"].adapter.items())
    }
    return make_concept(adapter=adapter)


@pytest.fixture
def weights(tiny, random) -> dict[str, torch.Tensor]:
    """New weights for all keys and values of cross-attention."""
    layers = [(n, m.weight) for n, m in tiny.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
    return {f"unet.{n}": w.detach() + 0.05 * random(*w.shape, seed=i) for i, (n, w) in enumerate(layers)}


@pytest.fixture
def tokens(tiny, random) -> dict[str, dict[str, torch.Tensor]]:
    """A token with two vectors for each text encoder."""
    widths = {e.name: e.module.config.hidden_size for e in tiny.encoders}
    return {"<mia>": {name: random(2, width) for name, width in widths.items()}}


def predict_noise(unet, model, text, adapter=None) -> torch.Tensor:
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": text.pooled, "time_ids": model.size_ids((64, 64))}
    with torch.no_grad(), one_adapter_per_row(unet, "unet.", {"mia": adapter or {}}) as rows, rows.on(["mia"]):
        return unet(sample, torch.tensor(300), text.tokens, added_cond_kwargs=added).sample


def check_text(pipeline, text) -> None:
    """Assert that the pipeline encodes the prompt to the same text."""
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    assert torch.allclose(text.tokens, tokens, atol=1e-5) and torch.allclose(text.pooled, pooled, atol=1e-5)


@pytest.mark.parametrize("ranks", ["one", "several"])
@pytest.mark.parametrize("format_name", FORMATS)
def test_lora_predicts_the_same_noise_in_diffusers(format_name, ranks, lora, concepts, tiny, pipeline, tmp_path):
    one = ranks == "one"
    concept = make_concept(adapter=concepts["a"].adapter) if one else lora
    path = tmp_path / "new" / "mia.safetensors"
    assert export_concept(concept, {"pictures": 4}, format_name, path) == [path] == list(path.parent.iterdir())
    read = load_concept(path, "mia", "mia")
    assert equal(read.adapter, concept.adapter)
    assert (read.class_name, read.trigger, read.licence) == ("woman", "mia", "CC0-1.0")
    assert (read.family, read.format) == ("sdxl", format_name)
    assert json.loads(read_metadata(path)["costars"])["pictures"] == 4
    assert any(key.endswith(".alpha") for key in load_file(path)) == (one and format_name == "kohya")
    assert ("lora_adapter_metadata" in read_metadata(path)) == (one and format_name == "diffusers")
    pipeline.load_lora_weights(path)
    plain = tiny.encode_text(PROMPT)
    with text_adapter(tiny.encoders, concept.adapter):
        text = tiny.encode_text(PROMPT)
    check_text(pipeline, text)
    assert not torch.allclose(text.tokens, plain.tokens, atol=1e-3)
    ours = predict_noise(tiny.unet, tiny, text, concept.adapter)
    assert torch.allclose(ours, predict_noise(pipeline.unet, tiny, text), atol=1e-5)
    assert not torch.allclose(ours, predict_noise(tiny.unet, tiny, text), atol=1e-3)


@pytest.mark.parametrize("format_name", FORMATS)
def test_lora_gives_the_same_picture_in_diffusers(format_name, concepts, tiny, pipeline, tmp_path):
    path, size, steps = tmp_path / "mia.safetensors", (64, 64), 4
    export_concept(make_concept(adapter=concepts["a"].adapter), {}, format_name, path)
    pipeline.load_lora_weights(path)
    options = {"width": 64, "height": 64, "num_inference_steps": steps, "guidance_scale": 5.0}
    latents = tiny.initial_noise(size, 3)
    theirs = pipeline(PROMPT, negative_prompt="blurry", latents=latents, output_type="pil", **options).images[0]

    def draw(adapter):
        plan = prepare_sampler(tiny.scheduler, steps, tiny.device, size, 5.0, seed=3)
        with one_adapter_per_row(tiny.unet, "unet.", {"mia": adapter}) as rows, text_adapter(tiny.encoders, adapter):
            texts = [tiny.encode_text(words) for words in (PROMPT, "blurry")]
            *_, step = denoise(
                tiny, plan.noise(tiny), [DenoisingPath("own", *texts, adapter="mia")], plan, adapters=rows
            )
        return tiny.decode(step.latent)

    def max_difference(picture):
        return np.abs(np.array(picture, dtype=int) - np.array(theirs)).max()

    assert max_difference(draw(load_concept(path, "mia", "mia").adapter)) <= 1 < max_difference(draw({}))


def test_kohya_metadata(lora, concepts, tmp_path):
    path = tmp_path / "mia.safetensors"
    export_concept(make_concept(adapter=concepts["a"].adapter), {}, "kohya", path)
    metadata = read_metadata(path)
    rank = str(len(next(iter(concepts["a"].adapter.values())).down))
    assert metadata.pop("costars") and metadata == {
        "format": "pt",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "mia",
        "modelspec.trigger_phrase": "mia",
        "modelspec.license": "CC0-1.0",
    }
    export_concept(replace(lora, trigger="", licence=""), {}, "kohya", path, overwrite=True)
    metadata = read_metadata(path)
    assert metadata["ss_network_dim"] == "Dynamic"
    assert not {"modelspec.trigger_phrase", "modelspec.license"} & metadata.keys()


@pytest.mark.parametrize(
    ("family", "width", "version"), [("sd15", 768, "sd_v1"), ("sd2", 1024, "sd_v2"), ("sdxl", 2048, "sdxl_base_v1-0")]
)
@pytest.mark.parametrize("with_card", [True, False])
def test_kohya_names_of_every_family(family, width, version, with_card, write, random, tmp_path):
    layers = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": LowRank(random(2, width), random(6, 2)),
        "unet.down_blocks.0.resnets.0.conv1": LowRank(random(2, 3, 3, 3), random(4, 2, 1, 1)),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": LowRank(random(2, 6), random(5, 2)),
    }
    path = tmp_path / "mia.safetensors"
    export_concept(make_concept(adapter=layers, family=family), {}, "kohya", path)
    tensors, metadata = load_file(path), read_metadata(path)
    te = "lora_te1" if family == "sdxl" else "lora_te"
    stems = ["lora_unet_down_blocks_0_resnets_0_conv1", f"{te}_text_model_encoder_layers_0_mlp_fc1"]
    stems.append("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k")
    assert {key.partition(".")[0] for key in tensors} == set(stems)
    assert metadata["ss_base_model_version"] == version
    if not with_card:
        metadata.pop("costars")
    read = load_concept(write(tensors, "again", **metadata), "again", "again")
    assert read.family == family and equal(read.adapter, layers)


def test_values_are_exact_in_the_smallest_dtype(tmp_path, random):
    layer = "unet.mid_block.attentions.0.proj_in"
    entry = LowRank(random(2, 6).half().float(), random(5, 2))
    path = tmp_path / "mia.safetensors"
    for format_name in FORMATS:
        export_concept(make_concept(adapter={layer: entry}), {}, format_name, path, overwrite=True)
        kinds = [t.dtype for t in load_file(path).values() if t.ndim == 2]
        assert sorted(map(str, kinds)) == ["torch.float16", "torch.float32"]
        assert equal(load_concept(path, "mia", "mia").adapter, {layer: entry})


def test_sdxl_embeddings_are_two_files_that_diffusers_reads(tokens, tiny, pipeline, write, tmp_path):
    folder = tmp_path / "mia"
    concept = make_concept(tokens=tokens, trigger="<mia>")
    paths = export_concept(concept, {}, "diffusers", folder)
    assert paths == [folder / "learned_embeds.safetensors", folder / "learned_embeds_2.safetensors"]
    assert {p: list(load_file(p)) for p in folder.iterdir()} == {p: ["<mia>"] for p in paths}
    halves = {key: load_file(path)["<mia>"] for key, path in zip(("clip_l", "clip_g"), paths, strict=True)}
    again = load_concept(write(halves, "<mia>"), "<mia>", "<mia>")
    both = load_concept(paths[0], "mia", "mia")
    for read in (again, both):
        assert all(torch.equal(read.tokens["<mia>"][part], vectors) for part, vectors in tokens["<mia>"].items())
        assert (read.trigger, read.format) == ("<mia>", "textual inversion")
    paths[1].write_bytes(paths[0].read_bytes()[:-4] + bytes(4))
    assert load_concept(paths[0], "mia", "mia").sha256 != both.sha256  # depends on both files
    export_concept(concept, {}, "diffusers", folder, overwrite=True)
    first, second = (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)
    for path, (tokenizer, encoder) in zip(paths, (first, second), strict=True):
        pipeline.load_textual_inversion(folder, weight_name=path.name, tokenizer=tokenizer, text_encoder=encoder)
    # With the old end-of-text id 2, transformers pools at the last added token.
    pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
    check_text(pipeline, tiny.encode_text(PROMPT, learned=concept.words))


def test_embedding_of_one_text_encoder_is_found_in_its_folder(random, tmp_path, pipeline):
    concept = make_concept(tokens={"<mia>": {"text_encoder": random(2, 768)}}, trigger="<mia>", family="sd15")
    (path,) = export_concept(concept, {}, "diffusers", tmp_path / "mia")
    read = load_concept(path, "mia", "mia")
    assert torch.equal(read.tokens["<mia>"]["text_encoder"], random(2, 768))
    assert (read.class_name, read.trigger, read.family, read.format) == ("woman", "<mia>", "sd15", "textual inversion")
    small = replace(concept, tokens={"<mia>": {"text_encoder": random(2, 32)}})
    export_concept(small, {}, "diffusers", tmp_path / "small")
    pipeline.load_textual_inversion(
        tmp_path / "small", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<mia>", "<mia>_1"])
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[ids], random(2, 32))


def test_lora_with_embeddings_is_a_folder_of_both(lora, tokens, tmp_path):
    concept = replace(lora, tokens=tokens, trigger="<mia>")
    paths = export_concept(concept, {}, "diffusers", tmp_path / "mia")
    names = ["pytorch_lora_weights", "learned_embeds", "learned_embeds_2"]
    assert [path.stem for path in paths] == names
    read = load_concept(paths[0], "mia", "mia")
    assert equal(read.adapter, lora.adapter) and (read.trigger, read.tokens) == ("<mia>", {})
    assert torch.equal(load_file(paths[2])["<mia>"], tokens["<mia>"]["text_encoder_2"])


def test_several_tokens_have_one_file_each(tokens, tmp_path):
    more = {"<a>": tokens["<mia>"], "<b>": tokens["<mia>"]}
    paths = export_concept(make_concept(tokens=more), {}, "diffusers", tmp_path / "mia")
    assert [path.stem for path in paths] == ["<a>", "<a>_2", "<b>", "<b>_2"]
    assert [list(load_file(path)) for path in paths] == [["<a>"], ["<a>"], ["<b>"], ["<b>"]]


def test_custom_diffusion_predicts_the_same_noise_in_diffusers(weights, tokens, tiny, pipeline, tmp_path):
    folder, concept = tmp_path / "mia", make_concept(weights=weights, tokens=tokens, trigger="<mia>")
    paths = export_concept(concept, {}, "diffusers", folder)
    assert [path.stem for path in paths] == ["pytorch_custom_diffusion_weights", "<mia>", "<mia>_2"]
    tensors = load_file(paths[0])
    stem = "mid_block.attentions.0.transformer_blocks.0"
    key = f"{stem}.attn2.processor.to_k_custom_diffusion.weight"
    assert torch.equal(tensors[key], weights[f"unet.{stem}.attn2.to_k"])
    assert tensors[f"{stem}.attn1.processor"].shape == (0,) and len(tensors) == 1.5 * len(weights)
    read = load_concept(paths[0], "mia", "mia")
    assert read.weights.keys() == weights.keys() and all(torch.equal(w, weights[k]) for k, w in read.weights.items())
    assert (read.class_name, read.trigger, read.format) == ("woman", "<mia>", "Custom Diffusion")
    text = tiny.encode_text(PROMPT)
    ours = predict_noise(tiny.unet, tiny, text, subtract_base_weights(weights, {"unet": tiny.unet}, "mia"))
    # diffusers 0.42 sets the processors only for a pipeline.
    pipeline.unet.load_attn_procs(folder, weight_name=paths[0].name, _pipeline=pipeline)
    assert torch.allclose(ours, predict_noise(pipeline.unet, tiny, text), atol=1e-5)
    assert not torch.allclose(ours, predict_noise(tiny.unet, tiny, text), atol=1e-3)


KEYS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PAIR = {KEYS: torch.ones(4, 6), KEYS[:-1] + "v": torch.ones(4, 6)}
TOKEN = {"<mia>": {"text_encoder": torch.ones(1, 8)}}
LAYER = {"unet.mid_block.attentions.0.proj_in": LowRank(torch.ones(2, 6), torch.ones(5, 2))}
ODD = {"unet.encoder_hid_proj": LowRank(torch.ones(2, 6), torch.ones(5, 2))}


@pytest.mark.parametrize(
    ("format_name", "parts", "expected"),
    [
        ("kohya", {"adapter": LAYER, "tokens": TOKEN}, "mia: has embeddings, which the kohya format cannot hold"),
        ("kohya", {"weights": PAIR}, "mia: has full weights, which the kohya format cannot hold; use --format diff"),
        ("kohya", {"adapter": ODD}, "layer 'unet.encoder_hid_proj' has no name in kohya's format; use --format diff"),
        ("kohya", {"tokens": TOKEN, "per_layer": True}, "has per-layer embeddings (ED-LoRA), which neither"),
        ("diffusers", {"tokens": TOKEN, "per_layer": True}, "has per-layer embeddings (ED-LoRA)"),
        (
            "diffusers",
            {"weights": {"unet.conv_in": torch.ones(4, 4, 3, 3)}},
            "has the full weight of 'unet.conv_in', not a pair",
        ),
        (
            "kohya",
            {"weights": {"unet.conv_in": torch.ones(4, 4, 3, 3)}},
            "which neither the kohya nor the diffusers format",
        ),
        ("diffusers", {"weights": {KEYS: torch.ones(4, 6)}}, f"has the full weight of {KEYS!r}, not a pair of"),
        ("diffusers", {"weights": PAIR | {KEYS[:-1] + "q": torch.ones(4, 4)}}, "attn2.to_q', not a pair of"),
        ("diffusers", {"weights": PAIR, "tokens": {"a/b": TOKEN["<mia>"]}}, "token 'a/b' cannot be a file name"),
        ("diffusers", {"weights": PAIR, "tokens": {"..": TOKEN["<mia>"]}}, "token '..' cannot be a file name"),
        ("kohya", {}, "mia: has no layers and no embeddings; train or import it again"),
        ("diffusers", {}, "mia: has no layers and no embeddings"),
        ("onnx", {"adapter": LAYER}, "--format 'onnx': unknown format; known: diffusers, kohya"),
    ],
)
def test_unsupported_concept_is_rejected_in_one_line(format_name, parts, expected, tmp_path):
    with pytest.raises(ConceptError) as caught:
        export_concept(make_concept(**parts), {}, format_name, tmp_path / "mia")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_kohya_format_requires_the_base_model(concepts):
    with pytest.raises(ConceptError, match="unknown base model, which the kohya format requires"):
        FORMATS["kohya"](replace(concepts["a"], family=""))


@pytest.mark.parametrize(("parts", "name"), [({"adapter": LAYER}, "mia.safetensors"), ({"tokens": TOKEN}, "mia")])
def test_existing_export_is_replaced_only_with_overwrite(parts, name, tmp_path):
    (path,) = export_concept(make_concept(**parts), {}, "diffusers", tmp_path / name)
    with pytest.raises(ConceptError, match="already exists; choose another --out, or use --replace"):
        export_concept(make_concept(**parts, trigger="zxa"), {}, "diffusers", tmp_path / name)
    assert json.loads(read_metadata(path)["costars"])["trigger"] == "mia"
    export_concept(make_concept(**parts, trigger="zxa"), {}, "diffusers", tmp_path / name, overwrite=True)
    assert json.loads(read_metadata(path)["costars"])["trigger"] == "zxa"
