"""ED-LoRA pickles are opened without running code and imported as costars' own files."""

import pickle
import zipfile

import pytest
import torch

from costars.concepts.import_file import ImportOptions, import_concept
from costars.concepts.load import load_concept
from costars.errors import ConceptError

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
SIZES = {QUERY: (8, 8), KEY: (768, 8), TEXT: (8, 8)}


@pytest.fixture
def params(random):
    def lora_tensors(path):
        inside, out = SIZES[path]
        return {f"{path}.lora_down.weight": random(4, inside), f"{path}.lora_up.weight": random(out, 4)}

    return {
        "new_concept_embedding": {"<zxa2>": random(16, 768, seed=1), "<zxa1>": random(16, 768)},
        "text_encoder": lora_tensors(TEXT),
        "unet": lora_tensors(QUERY) | lora_tensors(KEY),
    }


@pytest.fixture
def imported(tmp_path):
    def run_import(content, **options):
        torch.save(content, tmp_path / "zxa.pth")
        return import_concept(tmp_path / "zxa.pth", tmp_path / "library", ImportOptions(**options)).concept

    return run_import


def test_import_gives_per_layer_embeddings_and_scale_1(imported, params, tmp_path):
    concept = imported({"params": params}, class_name="woman")
    assert (concept.trigger, concept.family, concept.class_name) == ("<zxa2> <zxa1>", "sd15", "woman")
    assert concept.per_layer and list(concept.tokens) == ["<zxa2>", "<zxa1>"]
    for word, tensor in params["new_concept_embedding"].items():
        assert torch.equal(concept.tokens[word]["text_encoder"], tensor)
    assert set(concept.adapter) == {f"unet.{QUERY}", f"unet.{KEY}", f"text_encoder.{TEXT}"}
    for path, entry in concept.adapter.items():
        part, _, name = path.partition(".")
        assert torch.equal(entry.down, params[part][f"{name}.lora_down.weight"])
        assert torch.equal(entry.up, params[part][f"{name}.lora_up.weight"])
    assert [p.name for p in (tmp_path / "library").iterdir()] == ["zxa.safetensors"]


@pytest.mark.parametrize("missing", [True, False])
def test_text_encoder_may_be_missing_or_empty(imported, params, missing):
    """Mix-of-Show finds no layers since transformers renamed their class."""
    if missing:
        del params["text_encoder"]
    else:
        params["text_encoder"] = {}
    assert set(imported({"params": params}).adapter) == {f"unet.{QUERY}", f"unet.{KEY}"}


def test_sdxl_file_has_embeddings_for_both_text_encoders(imported, random):
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


class Malicious:
    def __reduce__(self):
        return (open, ("/tmp/costars-was-here", "w"))


def edlora(**more):
    return {"params": {"new_concept_embedding": {"<a>": torch.ones(16, 768)}, "unet": {}} | more}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (edlora(vae={}), "contains 'vae', which is not part of an ED-LoRA"),
        (edlora(unet=[torch.ones(2)]), "'unet' is not a dict of tensors"),
        (edlora(unet={"a": 3}), "'unet.a' is not a dense floating-point tensor"),
        (edlora(unet={"a": torch.ones(2, dtype=torch.int64)}), "'unet.a' is not a dense floating"),
        (edlora(unet={"a": torch.ones(1).expand(60_000, 60_000)}), "'unet.a' is not a dense floating"),
        (edlora(unet={"a": torch.ones(2, 2).to_sparse()}), "'unet.a' is not a dense floating"),
        (edlora(unet={"a.lora_down.weight": torch.ones(2, 2)}), "'unet.a' has tensors down, expected those of"),
        (edlora(new_concept_embedding={}), "embeddings for [] layers, expected 16 or 70"),
        (edlora(new_concept_embedding={"<a>": torch.ones(12, 768)}), "embeddings for [12] layers, expected 16 or 70"),
        (edlora(new_concept_embedding={"<a>": torch.ones(768)}), "embeddings for [0] layers"),
        (edlora(new_concept_embedding={"<a>": torch.ones(())}), "embeddings for [0] layers"),
        (edlora(new_concept_embedding={"<a>": torch.ones(16, 1024)}), "metadata says sd15 (its card), but layers"),
        ({"params": {"unet": {}}}, "is a pickle without the params of an ED-LoRA"),
        ({"state_dict": {}}, "is a pickle without the params of an ED-LoRA"),
        (torch.ones(3), "is a pickle without the params of an ED-LoRA"),
        ({"string_to_param": {"*": torch.ones(1, 768)}}, "is a pickled textual inversion; use its .safe"),
        (edlora(unet={"a": Malicious()}), "is a pickle that cannot be opened safely (UnpicklingError)"),
    ],
)  # fmt: skip
def test_other_pickles_are_rejected_and_nothing_is_written(imported, tmp_path, content, expected):
    with pytest.raises(ConceptError) as caught:
        imported(content)
    message = str(caught.value)
    assert message.startswith("zxa.pth: ") and expected in message and "\n" not in message
    assert not (tmp_path / "library").exists()


def test_pickle_never_runs_code(tmp_path):
    for name, content in (
        ("a.safetensors", pickle.dumps(Malicious())),
        ("b.pth", pickle.dumps(Malicious(), protocol=2)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConceptError, match=r"is a pickle that cannot be opened safely \(UnpicklingError\)"):
            import_concept(tmp_path / name, tmp_path / "library", ImportOptions())
        with pytest.raises(ConceptError, match="is a pickle, which can run code when opened"):
            load_concept(tmp_path / name, "a", "a")


def test_edlora_named_safetensors_is_imported(params, tmp_path):
    torch.save({"params": params}, tmp_path / "zxa.safetensors")
    concept = import_concept(tmp_path / "zxa.safetensors", tmp_path / "library", ImportOptions()).concept
    assert list(concept.tokens) == ["<zxa2>", "<zxa1>"]


def test_compressed_archive_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ConceptError, match=r"a.pth: is a pickle that cannot be opened safely \(ValueError\)"):
        import_concept(tmp_path / "a.pth", tmp_path / "library", ImportOptions())


def test_damaged_file_is_rejected(imported, params, tmp_path):
    torch.save({"params": params}, tmp_path / "zxa.pth")
    whole = (tmp_path / "zxa.pth").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"\x80\x02", whole[:1000] + b"\xff" * 200 + whole[1200:]):
        (tmp_path / "zxa.pth").write_bytes(damaged)
        with pytest.raises(ConceptError, match=r"^zxa.pth: .*; use "):
            import_concept(tmp_path / "zxa.pth", tmp_path / "library", ImportOptions())
