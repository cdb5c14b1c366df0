"""Concepts in other programs' formats: we and diffusers read back the same, and what cannot be held is refused."""

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
from costars.model.lora import changes, one_adapter_per_row, text_adapter
from costars.sample.loop import denoise, sampler
from costars.types import Concept, LowRank, Path

PROMPT = "a <mia> woman in the forest"


def concept_of(**parts) -> Concept:
    facts = {"class_name": "woman", "trigger": "mia", "family": "sdxl", "licence": "CC0-1.0", "adapter": {}}
    return Concept(**{"name": "mia", "source": "mia", "sha256": ""} | facts | parts)


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def equal(left, right) -> bool:
    """Whether two adapters are the same numbers."""
    same = [torch.equal(a.down, right[k].down) and torch.equal(a.up, right[k].up) for k, a in left.items()]
    return all(same) and left.keys() == right.keys()


@pytest.fixture
def lora(concepts) -> Concept:
    """A LoRA of UNet and text encoders, every third layer of it of half the rank."""
    adapter = {
        path: LowRank(entry.down[:1], entry.up[:, :1]) if i % 3 == 0 else entry
        for i, (path, entry) in enumerate(concepts["a"].adapter.items())
    }
    return concept_of(adapter=adapter)


@pytest.fixture
def whole(tiny, random) -> dict[str, torch.Tensor]:
    """Weights in place of all keys and values of cross-attention."""
    layers = [(n, m.weight) for n, m in tiny.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
    return {f"unet.{n}": w.detach() + 0.05 * random(*w.shape, seed=i) for i, (n, w) in enumerate(layers)}


@pytest.fixture
def words(tiny, random) -> dict[str, dict[str, torch.Tensor]]:
    """A word of two vectors for each text encoder."""
    widths = {e.name: e.module.config.hidden_size for e in tiny.encoders}
    return {"<mia>": {name: random(2, width) for name, width in widths.items()}}


def noise(unet, model, text, adapter=None) -> torch.Tensor:
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": text.pooled, "time_ids": model.size_ids((64, 64))}
    with torch.no_grad(), one_adapter_per_row(unet, "unet.", {"mia": adapter or {}}) as rows, rows.on(["mia"]):
        return unet(sample, torch.tensor(300), text.tokens, added_cond_kwargs=added).sample


def check_text(pipeline, text) -> None:
    """The pipeline encodes the prompt as the text was."""
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    assert torch.allclose(text.tokens, tokens, atol=1e-5) and torch.allclose(text.pooled, pooled, atol=1e-5)


@pytest.mark.parametrize("ranks", ["one", "several"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_lora_is_the_same_for_us_and_for_diffusers(form, ranks, lora, concepts, tiny, pipeline, tmp_path):
    one = ranks == "one"
    concept = concept_of(adapter=concepts["a"].adapter) if one else lora
    path = tmp_path / "new" / "mia.safetensors"
    assert export_concept(concept, {"pictures": 4}, form, path) == [path] == list(path.parent.iterdir())
    read = load_concept(path, "mia", "mia")
    assert equal(read.adapter, concept.adapter)
    assert (read.class_name, read.trigger, read.licence) == ("woman", "mia", "CC0-1.0")
    assert (read.family, read.format) == ("sdxl", form)
    assert json.loads(metadata_of(path)["costars"])["pictures"] == 4
    assert any(key.endswith(".alpha") for key in load_file(path)) == (one and form == "kohya")
    assert ("lora_adapter_metadata" in metadata_of(path)) == (one and form == "diffusers")
    pipeline.load_lora_weights(path)
    plain = tiny.encode_text(PROMPT)
    with text_adapter(tiny.encoders, concept.adapter):
        text = tiny.encode_text(PROMPT)
    check_text(pipeline, text)
    assert not torch.allclose(text.tokens, plain.tokens, atol=1e-3)
    ours = noise(tiny.unet, tiny, text, concept.adapter)
    assert torch.allclose(ours, noise(pipeline.unet, tiny, text), atol=1e-5)
    assert not torch.allclose(ours, noise(tiny.unet, tiny, text), atol=1e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_a_lora_draws_the_same_picture_here_and_in_diffusers(form, concepts, tiny, pipeline, tmp_path):
    path, size, steps = tmp_path / "mia.safetensors", (64, 64), 4
    export_concept(concept_of(adapter=concepts["a"].adapter), {}, form, path)
    pipeline.load_lora_weights(path)
    told = {"width": 64, "height": 64, "num_inference_steps": steps, "guidance_scale": 5.0}
    latents = tiny.initial_noise(size, 3)
    theirs = pipeline(PROMPT, negative_prompt="blurry", latents=latents, output_type="pil", **told).images[0]

    def drawn(adapter):
        plan = sampler(tiny.scheduler, steps, tiny.device, size, 5.0, seed=3)
        with one_adapter_per_row(tiny.unet, "unet.", {"mia": adapter}) as rows, text_adapter(tiny.encoders, adapter):
            texts = [tiny.encode_text(words) for words in (PROMPT, "blurry")]
            *_, step = denoise(tiny, plan.noise(tiny), [Path("own", *texts, adapter="mia")], plan, adapters=rows)
        return tiny.decode(step.latent)

    def differ(picture):
        return np.abs(np.array(picture, dtype=int) - np.array(theirs)).max()

    assert differ(drawn(load_concept(path, "mia", "mia").adapter)) <= 1 < differ(drawn({}))


def test_kohyas_metadata_says_what_its_readers_ask_for(lora, concepts, tmp_path):
    path = tmp_path / "mia.safetensors"
    export_concept(concept_of(adapter=concepts["a"].adapter), {}, "kohya", path)
    said = metadata_of(path)
    rank = str(len(next(iter(concepts["a"].adapter.values())).down))
    assert said.pop("costars") and said == {
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
    export_concept(replace(lora, trigger="", licence=""), {}, "kohya", path, replaced=True)
    said = metadata_of(path)
    assert said["ss_network_dim"] == "Dynamic" and not {"modelspec.trigger_phrase", "modelspec.license"} & said.keys()


@pytest.mark.parametrize(
    ("family", "width", "says"), [("sd15", 768, "sd_v1"), ("sd2", 1024, "sd_v2"), ("sdxl", 2048, "sdxl_base_v1-0")]
)
@pytest.mark.parametrize("with_card", [True, False])
def test_every_family_has_its_names(family, width, says, with_card, write, random, tmp_path):
    layers = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": LowRank(random(2, width), random(6, 2)),
        "unet.down_blocks.0.resnets.0.conv1": LowRank(random(2, 3, 3, 3), random(4, 2, 1, 1)),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": LowRank(random(2, 6), random(5, 2)),
    }
    path = tmp_path / "mia.safetensors"
    export_concept(concept_of(adapter=layers, family=family), {}, "kohya", path)
    tensors, metadata = load_file(path), metadata_of(path)
    te = "lora_te1" if family == "sdxl" else "lora_te"
    stems = ["lora_unet_down_blocks_0_resnets_0_conv1", f"{te}_text_model_encoder_layers_0_mlp_fc1"]
    stems.append("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k")
    assert {key.partition(".")[0] for key in tensors} == set(stems)
    assert metadata["ss_base_model_version"] == says
    if not with_card:
        metadata.pop("costars")
    read = load_concept(write(tensors, "again", **metadata), "again", "again")
    assert read.family == family and equal(read.adapter, layers)


def test_the_numbers_are_kept_and_take_no_more_room_than_they_need(tmp_path, random):
    layer = "unet.mid_block.attentions.0.proj_in"
    entry = LowRank(random(2, 6).half().float(), random(5, 2))
    path = tmp_path / "mia.safetensors"
    for form in FORMATS:
        export_concept(concept_of(adapter={layer: entry}), {}, form, path, replaced=True)
        kinds = [t.dtype for t in load_file(path).values() if t.ndim == 2]
        assert sorted(map(str, kinds)) == ["torch.float16", "torch.float32"]
        assert equal(load_concept(path, "mia", "mia").adapter, {layer: entry})


def test_the_words_of_sdxl_are_two_files_that_diffusers_reads(words, tiny, pipeline, write, tmp_path):
    folder = tmp_path / "mia"
    concept = concept_of(tokens=words, trigger="<mia>")
    paths = export_concept(concept, {}, "diffusers", folder)
    assert paths == [folder / "learned_embeds.safetensors", folder / "learned_embeds_2.safetensors"]
    assert {p: list(load_file(p)) for p in folder.iterdir()} == {p: ["<mia>"] for p in paths}
    halves = {key: load_file(path)["<mia>"] for key, path in zip(("clip_l", "clip_g"), paths, strict=True)}
    again = load_concept(write(halves, "<mia>"), "<mia>", "<mia>")
    both = load_concept(paths[0], "mia", "mia")
    for read in (again, both):
        assert all(torch.equal(read.tokens["<mia>"][part], vectors) for part, vectors in words["<mia>"].items())
        assert (read.trigger, read.format) == ("<mia>", "textual inversion")
    paths[1].write_bytes(paths[0].read_bytes()[:-4] + bytes(4))
    assert load_concept(paths[0], "mia", "mia").sha256 != both.sha256  # both files are what it is
    export_concept(concept, {}, "diffusers", folder, replaced=True)
    first, second = (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)
    for path, (tokenizer, encoder) in zip(paths, (first, second), strict=True):
        pipeline.load_textual_inversion(folder, weight_name=path.name, tokenizer=tokenizer, text_encoder=encoder)
    # Of the old id 2 transformers says itself that it cannot work with added words: it pools the last of these.
    pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
    check_text(pipeline, tiny.encode_text(PROMPT, learned=concept.words))


def test_a_word_of_one_text_encoder_is_found_in_its_folder(random, tmp_path, pipeline):
    concept = concept_of(tokens={"<mia>": {"text_encoder": random(2, 768)}}, trigger="<mia>", family="sd15")
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


def test_a_lora_with_words_is_a_folder_of_both(lora, words, tmp_path):
    concept = replace(lora, tokens=words, trigger="<mia>")
    paths = export_concept(concept, {}, "diffusers", tmp_path / "mia")
    names = ["pytorch_lora_weights", "learned_embeds", "learned_embeds_2"]
    assert [path.stem for path in paths] == names
    read = load_concept(paths[0], "mia", "mia")
    assert equal(read.adapter, lora.adapter) and (read.trigger, read.tokens) == ("<mia>", {})
    assert torch.equal(load_file(paths[2])["<mia>"], words["<mia>"]["text_encoder_2"])


def test_several_words_have_a_file_each_for_diffusers_reads_one_of_a_file(words, tmp_path):
    more = {"<a>": words["<mia>"], "<b>": words["<mia>"]}
    paths = export_concept(concept_of(tokens=more), {}, "diffusers", tmp_path / "mia")
    assert [path.stem for path in paths] == ["<a>", "<a>_2", "<b>", "<b>_2"]
    assert [list(load_file(path)) for path in paths] == [["<a>"], ["<a>"], ["<b>"], ["<b>"]]


def test_custom_diffusion_is_the_same_for_us_and_for_diffusers(whole, words, tiny, pipeline, tmp_path):
    folder, concept = tmp_path / "mia", concept_of(weights=whole, tokens=words, trigger="<mia>")
    paths = export_concept(concept, {}, "diffusers", folder)
    assert [path.stem for path in paths] == ["pytorch_custom_diffusion_weights", "<mia>", "<mia>_2"]
    tensors = load_file(paths[0])
    stem = "mid_block.attentions.0.transformer_blocks.0"
    key = f"{stem}.attn2.processor.to_k_custom_diffusion.weight"
    assert torch.equal(tensors[key], whole[f"unet.{stem}.attn2.to_k"])
    assert tensors[f"{stem}.attn1.processor"].shape == (0,) and len(tensors) == 1.5 * len(whole)
    read = load_concept(paths[0], "mia", "mia")
    assert read.weights.keys() == whole.keys() and all(torch.equal(w, whole[k]) for k, w in read.weights.items())
    assert (read.class_name, read.trigger, read.format) == ("woman", "<mia>", "Custom Diffusion")
    text = tiny.encode_text(PROMPT)
    ours = noise(tiny.unet, tiny, text, changes(whole, {"unet": tiny.unet}, "mia"))
    # diffusers 0.42 sets the processors only for a pipeline.
    pipeline.unet.load_attn_procs(folder, weight_name=paths[0].name, _pipeline=pipeline)
    assert torch.allclose(ours, noise(pipeline.unet, tiny, text), atol=1e-5)
    assert not torch.allclose(ours, noise(tiny.unet, tiny, text), atol=1e-3)


KEYS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PAIR = {KEYS: torch.ones(4, 6), KEYS[:-1] + "v": torch.ones(4, 6)}
WORD = {"<mia>": {"text_encoder": torch.ones(1, 8)}}
LAYER = {"unet.mid_block.attentions.0.proj_in": LowRank(torch.ones(2, 6), torch.ones(5, 2))}
ODD = {"unet.encoder_hid_proj": LowRank(torch.ones(2, 6), torch.ones(5, 2))}


@pytest.mark.parametrize(
    ("form", "parts", "said"),
    [
        ("kohya", {"adapter": LAYER, "tokens": WORD}, "mia: has learned words, which a LoRA of kohya's cannot hold"),
        ("kohya", {"weights": PAIR}, "mia: has whole weights, which a LoRA of kohya's cannot hold; use --format diff"),
        ("kohya", {"adapter": ODD}, "changes 'unet.encoder_hid_proj', for which kohya has no name; use --format diff"),
        ("kohya", {"tokens": WORD, "per_layer": True}, "its words differ from layer to layer (ED-LoRA), which neither"),
        ("diffusers", {"tokens": WORD, "per_layer": True}, "its words differ from layer to layer (ED-LoRA)"),
        ("diffusers", {"weights": {"unet.conv_in": torch.ones(4, 4, 3, 3)}}, "brings 'unet.conv_in' whole, not keys"),
        ("kohya", {"weights": {"unet.conv_in": torch.ones(4, 4, 3, 3)}}, "which neither kohya's nor diffusers' files"),
        ("diffusers", {"weights": {KEYS: torch.ones(4, 6)}}, f"brings {KEYS!r} whole, not keys with values"),
        ("diffusers", {"weights": PAIR | {KEYS[:-1] + "q": torch.ones(4, 4)}}, "attn2.to_q' whole, not keys with"),
        ("diffusers", {"weights": PAIR, "tokens": {"a/b": WORD["<mia>"]}}, "its word 'a/b' cannot name a file"),
        ("diffusers", {"weights": PAIR, "tokens": {"..": WORD["<mia>"]}}, "its word '..' cannot name a file"),
        ("kohya", {}, "mia: has neither layers nor words to write; teach or import it again"),
        ("diffusers", {}, "mia: has neither layers nor words to write"),
        ("onnx", {"adapter": LAYER}, "--format 'onnx': no such format; known: diffusers, kohya"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(form, parts, said, tmp_path):
    with pytest.raises(ConceptError) as caught:
        export_concept(concept_of(**parts), {}, form, tmp_path / "mia")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("parts", "name"), [({"adapter": LAYER}, "mia.safetensors"), ({"tokens": WORD}, "mia")])
def test_what_is_there_is_replaced_when_asked_to_and_otherwise_kept(parts, name, tmp_path):
    target = tmp_path / name
    export_concept(concept_of(**parts), {}, "diffusers", target)
    files = [target] if target.is_file() else list(target.iterdir())
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(ConceptError, match="is there already; give another --out, or --replace it"):
        export_concept(concept_of(**parts, trigger="zxa"), {}, "diffusers", target)
    assert {path: path.read_bytes() for path in files} == before
    (path,) = export_concept(concept_of(**parts, trigger="zxa"), {}, "diffusers", target, replaced=True)
    assert json.loads(metadata_of(path)["costars"])["trigger"] == "zxa"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_other_things_or_a_link_is_never_replaced(tmp_path):
    folder, link = tmp_path / "pictures", tmp_path / "link"
    folder.mkdir()
    (folder / "mia.png").write_bytes(b"mine")
    link.symlink_to(folder)
    for target in (folder, link):
        with pytest.raises(ConceptError, match=r"is no folder of \.safetensors files alone, so it is not replaced"):
            export_concept(concept_of(tokens=WORD), {}, "diffusers", target, replaced=True)
    assert (folder / "mia.png").read_bytes() == b"mine"
    (tmp_path / "odd.safetensors").mkdir()
    with pytest.raises(ConceptError, match="is no plain file"):
        export_concept(concept_of(adapter=LAYER), {}, "kohya", tmp_path / "odd.safetensors", replaced=True)


@pytest.mark.parametrize(
    ("parts", "name", "said"),
    [
        ({"adapter": LAYER}, "mia", "this concept becomes one file, so it ends with .safetensors"),
        ({"tokens": WORD}, "mia.safetensors", "this concept becomes a folder, so it does not end with .safetensors"),
    ],
)
def test_a_file_and_a_folder_are_told_apart_by_their_ending(parts, name, said, tmp_path):
    with pytest.raises(ConceptError, match=said):
        export_concept(concept_of(**parts), {}, "diffusers", tmp_path / name)


@pytest.mark.parametrize("parts", [{"adapter": LAYER}, {"adapter": LAYER, "tokens": WORD}])
def test_nothing_is_left_and_the_old_is_kept_where_writing_fails(parts, tmp_path, monkeypatch):
    target = tmp_path / ("mia" if "tokens" in parts else "mia.safetensors")
    export_concept(concept_of(**parts), {}, "diffusers", target)
    written = iter([None])

    def full(*_, **__):
        if next(written, "full") == "full" or "tokens" not in parts:
            raise OSError("disk full")

    monkeypatch.setattr("costars.files.atomic.save_file", full)
    before = sorted(tmp_path.rglob("*"))
    for out in (target, target.with_stem("new")):
        with pytest.raises(OSError, match="disk full"):
            export_concept(concept_of(**parts), {}, "diffusers", out, replaced=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_old_folder_comes_back_where_the_new_cannot_be_put(tmp_path, monkeypatch):
    target = tmp_path / "mia"
    (path,) = export_concept(concept_of(tokens=WORD), {}, "diffusers", target)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("gone")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="gone"):
        export_concept(concept_of(tokens=WORD, trigger="zxa"), {}, "diffusers", target, replaced=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_a_lora_that_does_not_tell_its_base_model_is_none_of_kohyas(concepts):
    with pytest.raises(ConceptError, match="does not say which base model it is for, as kohya's files must"):
        FORMATS["kohya"](replace(concepts["a"], family=""))
