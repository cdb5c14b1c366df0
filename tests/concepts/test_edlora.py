"""ED-LoRAs: a pickle that is opened once, without running it, and becomes a file of ours."""

import pickle
import zipfile

import pytest
import torch

from costars.concepts.import_file import Naming, import_concept
from costars.concepts.load import load_concept
from costars.errors import ConceptError

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
SIZES = {QUERY: (8, 8), KEY: (768, 8), TEXT: (8, 8)}


@pytest.fixture
def params(random):
    def pair(path):
        inside, out = SIZES[path]
        return {f"{path}.lora_down.weight": random(4, inside), f"{path}.lora_up.weight": random(out, 4)}

    return {
        "new_concept_embedding": {"<zxa2>": random(16, 768, seed=1), "<zxa1>": random(16, 768)},
        "text_encoder": pair(TEXT),
        "unet": pair(QUERY) | pair(KEY),
    }


@pytest.fixture
def imported(tmp_path):
    def of(content, **naming):
        torch.save(content, tmp_path / "zxa.pth")
        return import_concept(tmp_path / "zxa.pth", tmp_path / "library", Naming(**naming)).concept

    return of


def test_it_becomes_words_for_each_layer_and_an_adapter_of_scale_1(imported, params, tmp_path):
    concept = imported({"params": params}, class_name="woman")
    assert (concept.trigger, concept.family, concept.class_name) == ("<zxa2> <zxa1>", "sd15", "woman")
    assert concept.per_layer and list(concept.tokens) == ["<zxa2>", "<zxa1>"]
    for word, tensor in params["new_concept_embedding"].items():
        assert torch.equal(concept.tokens[word]["text_encoder"], tensor)
    assert set(concept.adapter) == {f"unet.{QUERY}", f"unet.{KEY}", f"text_encoder.{TEXT}"}
    for path, entry in concept.adapter.items():
        part, _, own = path.partition(".")
        assert torch.equal(entry.down, params[part][f"{own}.lora_down.weight"])
        assert torch.equal(entry.up, params[part][f"{own}.lora_up.weight"])
    assert [p.name for p in (tmp_path / "library").iterdir()] == ["zxa.safetensors"]


@pytest.mark.parametrize("missing", [True, False])
def test_a_text_encoder_without_layers_is_taken_as_it_is(imported, params, missing):
    """transformers renamed the class by which Mix-of-Show finds them."""
    if missing:
        del params["text_encoder"]
    else:
        params["text_encoder"] = {}
    assert set(imported({"params": params}).adapter) == {f"unet.{QUERY}", f"unet.{KEY}"}


def test_one_of_sdxl_has_words_of_both_text_encoders(imported, random):
    params = {
        "new_concept_embedding": {"<zxa>": random(70, 768)},
        "new_concept_embedding_2": {"<zxa>": random(70, 1280)},
        "unet": {},
        "text_encoder_2": {f"{TEXT}.lora_down.weight": random(2, 8), f"{TEXT}.lora_up.weight": random(8, 2)},
    }
    concept = imported({"params": params})
    assert {part: tuple(t.shape) for part, t in concept.tokens["<zxa>"].items()} == {
        "text_encoder": (70, 768),
        "text_encoder_2": (70, 1280),
    }
    assert (concept.family, set(concept.adapter)) == ("sdxl", {f"text_encoder_2.{TEXT}"})


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/costars-was-here", "w"))


def words(**more):
    return {"params": {"new_concept_embedding": {"<a>": torch.ones(16, 768)}, "unet": {}} | more}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (words(vae={}), "holds 'vae', which no ED-LoRA has"),
        (words(unet=[torch.ones(2)]), "its unet is no table of tensors"),
        (words(unet={"a": 3}), "'unet.a' is no plain tensor of floating point numbers"),
        (words(unet={"a": torch.ones(2, dtype=torch.int64)}), "'unet.a' is no plain tensor"),
        (words(unet={"a": torch.ones(1).expand(60_000, 60_000)}), "'unet.a' is no plain tensor"),
        (words(unet={"a": torch.ones(2, 2).to_sparse()}), "'unet.a' is no plain tensor"),
        (words(unet={"a.lora_down.weight": torch.ones(2, 2)}), "'unet.a' has the factors down, want both"),
        (words(new_concept_embedding={}), "its words have [] layers, want 16 or 70"),
        (words(new_concept_embedding={"<a>": torch.ones(12, 768)}), "its words have [12] layers, want 16 or 70"),
        (words(new_concept_embedding={"<a>": torch.ones(768)}), "its words have [0] layers"),
        (words(new_concept_embedding={"<a>": torch.ones(())}), "its words have [0] layers"),
        (words(new_concept_embedding={"<a>": torch.ones(16, 1024)}), "its metadata says sd15 (its card), its"),
        ({"params": {"unet": {}}}, "is a pickle without the params of an ED-LoRA"),
        ({"state_dict": {}}, "is a pickle without the params of an ED-LoRA"),
        (torch.ones(3), "is a pickle without the params of an ED-LoRA"),
        ({"string_to_param": {"*": torch.ones(1, 768)}}, "is a textual inversion in a pickle; use the .safe"),
        (words(unet={"a": Evil()}), "is a pickle that cannot be opened safely (UnpicklingError)"),
    ],
)  # fmt: skip
def test_what_is_no_ed_lora_is_refused_and_nothing_is_written(imported, tmp_path, content, said):
    with pytest.raises(ConceptError) as caught:
        imported(content)
    assert str(caught.value).startswith("zxa.pth: ") and said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "library").exists()


def test_a_pickle_runs_nothing_whatever_it_is_called(tmp_path):
    for name, content in (("a.safetensors", pickle.dumps(Evil())), ("b.pth", pickle.dumps(Evil(), protocol=2))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConceptError, match=r"is a pickle that cannot be opened safely \(UnpicklingError\)"):
            import_concept(tmp_path / name, tmp_path / "library", Naming())
        with pytest.raises(ConceptError, match="is a pickle, which can run code when opened"):
            load_concept(tmp_path / name, "a", "a")


def test_one_that_is_called_safetensors_is_read_all_the_same(params, tmp_path):
    torch.save({"params": params}, tmp_path / "zxa.safetensors")
    concept = import_concept(tmp_path / "zxa.safetensors", tmp_path / "library", Naming()).concept
    assert list(concept.tokens) == ["<zxa2>", "<zxa1>"]


def test_an_archive_that_would_unpack_to_more_than_it_is_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ConceptError, match=r"a.pth: is a pickle that cannot be opened safely \(ValueError\)"):
        import_concept(tmp_path / "a.pth", tmp_path / "library", Naming())


def test_a_damaged_one_is_refused(imported, params, tmp_path):
    torch.save({"params": params}, tmp_path / "zxa.pth")
    whole = (tmp_path / "zxa.pth").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"\x80\x02", whole[:1000] + b"\xff" * 200 + whole[1200:]):
        (tmp_path / "zxa.pth").write_bytes(damaged)
        with pytest.raises(ConceptError, match=r"^zxa.pth: .*; use "):
            import_concept(tmp_path / "zxa.pth", tmp_path / "library", Naming())
