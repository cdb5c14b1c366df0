"""costars concepts: its output, its files, and errors in one line."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from costars.concepts.load import load_concept
from costars.concepts.saving import write_concept
from costars.types import Concept

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def kohya(tmp_path):
    """A file as another program wrote it."""
    path = tmp_path / "zxa_v1.safetensors"
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(2, 48), f"{LAYER}.lora_up.weight": torch.ones(48, 2)}
    tags = json.dumps({"10_zxa": {"zxa": 10, "park": 2}})
    save_file(tensors, path, metadata={"ss_tag_frequency": tags, "modelspec.license": "CC0-1.0"})
    return path


def test_imported_file_is_listed_shown_rendered_and_removed(cli, folder, library, kohya, write):
    code, out, err = cli("concepts", "import", kohya, "--name", "ana", "--class", "woman", "--trigger", "zxa")
    assert (code, out, err) == (0, "ana\n", "unknown base model, 1 layers, woman, zxa\n")
    assert sorted(p.name for p in library.iterdir()) == [f"{n}.safetensors" for n in ("ana", "char_a", "char_b")]
    assert ["ana", "woman"] in [line.split()[:2] for line in cli("concepts", "list")[1].splitlines()]
    shown = json.loads(cli("concepts", "show", "ana")[1])
    assert (shown["trigger"], shown["licence"], shown["layers"], shown["family"]) == ("zxa", "CC0-1.0", 1, "")
    assert shown["imported"]["format"] == "kohya"
    write(a={"concept": "ana"})
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0, err
    assert cli("concepts", "remove", "ana") == (0, f"{library / 'ana.safetensors'}\n", "")
    assert not (library / "ana.safetensors").exists()


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_exported_concept_can_be_rendered(cli, expect_error, folder, library, write, form):
    words = ["concepts", "export", "char_a", "--format", form, "--out", "ana.safetensors"]
    assert cli(*words) == (0, "ana.safetensors\n", "")
    expect_error(*words, message="ana.safetensors already exists; choose another --out, or use --replace")
    assert cli(*words, "--replace")[0] == 0
    write(a={"concept": "ana.safetensors"})
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0, err
    assert json.loads(cli("concepts", "inspect", "ana.safetensors")[1])["format"] == form
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_concept_of_learned_words_is_exported_as_a_folder(cli, expect_error, folder):
    save_file({"<zxa>": torch.ones(2, 768)}, folder / "zxa.safetensors")
    cli("concepts", "import", "zxa.safetensors", "--class", "cat")
    code, out, err = cli("concepts", "export", "zxa", "--format", "diffusers", "--out", "for others")
    assert (code, out, err) == (0, "for others/learned_embeds.safetensors\n", "")
    assert torch.equal(load_file(out.rstrip())["<zxa>"].float(), torch.ones(2, 768))
    expect_error(
        "concepts",
        "export",
        "zxa",
        "--format",
        "kohya",
        "--out",
        "zxa2.safetensors",
        message="has embeddings, which the kohya",
    )


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"weights": {"unet.conv_in": torch.ones(48, 4, 3, 3)}}, "has the full weight of 'unet.conv_in', not a pair"),
        ({"tokens": {"<mia1>": {"text_encoder": torch.ones(7, 32)}}, "per_layer": True}, "per-layer embeddings (ED-Lo"),
    ],
    ids=["dreambooth", "ed-lora"],
)
def test_export_of_unsupported_concept_is_rejected(expect_error, folder, library, form, parts, message):
    card = {"name": "mia", "class_name": "woman", "trigger": "mia", "family": "sdxl"}
    concept = Concept(**card, **{"adapter": {}, "source": "mia", "sha256": ""} | parts)
    write_concept(concept, card | {"per_layer": concept.per_layer}, library / "mia.safetensors")
    expect_error("concepts", "export", "mia", "--format", form, "--out", "others", message=message)
    expect_error(
        "concepts", "export", "mia", "--format", form, "--out", "others", message="use the file written by costars"
    )
    assert not (folder / "others").exists()


def test_merged_concepts_share_their_weights(cli, expect_error, folder, library, tiny):
    keys = {n: m.weight for n, m in tiny.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    for i, name in enumerate(("mia", "rex")):
        weights = {f"unet.{path}": weight.detach() * (1.5 + i) for path, weight in keys.items()}
        words = {f"<{name}>": {e.name: torch.ones(1, 32) * (i + 1) for e in tiny.encoders}}
        card = {"name": name, "class_name": "cat", "trigger": f"<{name}>", "family": "sdxl"}
        facts = {"adapter": {}, "source": name, "sha256": "", "tokens": words, "weights": weights}
        write_concept(Concept(**card, **facts), card, library / f"{name}.safetensors")
    (folder / "captions.txt").write_text("a photo of the forest\n\na street at night\n")
    words = ["concepts", "merge", "mia", "rex", "--model", "tiny-sdxl", "--captions", "captions.txt", "--out", "both"]
    assert cli(*words) == (0, "both/mia.safetensors\nboth/rex.safetensors\n", "")
    one, other = (load_concept(folder / "both" / f"{name}.safetensors", "", "") for name in ("mia", "rex"))
    assert all(torch.equal(weight, other.weights[path]) for path, weight in one.weights.items())
    assert (one.trigger, list(one.tokens), other.trigger) == ("<mia>", ["<mia>"], "<rex>")
    expect_error(*words, message="both/mia.safetensors: already exists; choose another --out, or use --replace")
    expect_error(*words[:3], "char_a", *words[4:], "--replace", message="char_a: has full weights of 0 layers")
    (folder / "captions.txt").write_text("\n")
    expect_error(*words, "--replace", message="--captions captions.txt: no caption; write one per line")


def test_import_lists_what_the_file_does_not_say(cli, kohya):
    code, out, err = cli("concepts", "import", kohya)
    assert (code, out) == (0, "zxa_v1\n")
    assert err.splitlines() == [
        "unknown base model, 1 layers, no class, no trigger",
        "the trigger may be one of 'zxa', 'park'",
        "to set what is missing, import it again with --class, --trigger and --replace",
    ]


def test_import_replaces_a_name_only_with_replace(cli, expect_error, kohya, library):
    before = (library / "char_a.safetensors").read_bytes()
    message = "'char_a' is already in your library; choose another --name, or use --replace"
    expect_error("concepts", "import", kohya, "--name", "char_a", message=message)
    assert (library / "char_a.safetensors").read_bytes() == before
    assert cli("concepts", "import", kohya, "--name", "char_a", "--replace", "--class", "boy")[0] == 0
    assert json.loads(cli("concepts", "show", "char_a")[1])["class_name"] == "boy"


def test_imported_ed_lora_is_converted_to_safetensors(cli, library, tmp_path):
    params = {"new_concept_embedding": {"<zxa>": torch.ones(16, 768)}, "unet": {}}
    torch.save({"params": params}, tmp_path / "zxa.pth")
    code, out, err = cli("concepts", "import", tmp_path / "zxa.pth", "--class", "cat")
    assert (code, out, err) == (0, "zxa\n", "sd15, 1 words, cat, <zxa>\n")
    assert torch.equal(load_file(library / "zxa.safetensors")["tokens.text_encoder.<zxa>"].float(), torch.ones(16, 768))


def test_inspect_prints_a_report_and_writes_nothing(cli, kohya, library):
    before = sorted(library.iterdir())
    code, out, err = cli("concepts", "inspect", kohya)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["format"], report["frequent_tags"], report["layers"]) == ("kohya", ["zxa", "park"], {"unet": 1})
    assert sorted(library.iterdir()) == before


def test_list_includes_other_folders_and_hidden_files(cli, tmp_path, library, kohya, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lou.safetensors").write_bytes(kohya.read_bytes())
    monkeypatch.setenv("COSTARS_CONCEPT_FOLDERS", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    code, out, _ = cli("concepts", "list")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and [line.split()[0] for line in lines] == ["char_a", "char_b", "lou", "lou"]
    two, one = tmp_path / "two" / "lou.safetensors", tmp_path / "one" / "lou.safetensors"
    assert lines[-1] == f"lou hidden: {two} is not used, {one} has the same name"


def test_list_gives_the_reason_for_unusable_files(cli, library, kohya):
    (library / "bad.safetensors").write_bytes(b"<html>")
    (library / "out.safetensors").symlink_to(kohya)
    lines = {line.split()[0]: line for line in cli("concepts", "list")[1].splitlines()}
    assert "damaged: bad.safetensors: is a web page" in lines["bad"]
    assert "damaged: out.safetensors is a link that leads out of its folder" in lines["out"]


def test_list_replaces_control_characters(cli, library, kohya):
    card = json.dumps({"class_name": "\x1b[2Jwoman"})
    save_file(load_file(kohya), library / "odd.safetensors", metadata={"costars": card})
    out = cli("concepts", "list")[1]
    assert "\x1b" not in out and "?[2Jwoman" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "gone.safetensors"], "gone.safetensors: no such file"),
        (["inspect", "gone.safetensors"], "gone.safetensors: no such file"),
        (["inspect", "page.safetensors"], "page.safetensors: is a web page instead of the file"),
        (["import", "page.safetensors"], "page.safetensors: is a web page instead of the file"),
        (["inspect", "old.pth"], "old.pth: is a pickle that cannot be opened safely"),
        (["import", "old.pth"], "old.pth: is a pickle that cannot be opened safely"),
        (["import", "old.pth", "--name", "../mine"], "--name '../mine': a name has letters of any language"),
        (["import", "oft.safetensors"], "oft.safetensors: is an OFT of an old version"),
        (["remove", "builtin/ana"], "no concept 'builtin/ana' in your library"),
        (["remove", "char_c"], "no concept 'char_c' in your library; did you mean 'char_b' or 'char_a'?"),
        (["remove", "../library/char_a"], "no concept '../library/char_a' in your library"),
        (["import"], "Missing argument 'file'; see costars --help"),
        (["export", "char_a", "--out", "a.safetensors"], "Missing option '--format'; see costars --help"),
        (["export", "char_a", "--format", "onnx", "--out", "a.safetensors"], "unknown format; known: diffusers, kohya"),
        (["export", "char_a", "--format", "kohya", "--out", "a"], "one file, which must end with .safetensors"),
        (["export", "char_c", "--format", "kohya", "--out", "a.safetensors"], "no concept 'char_c'; did you mean"),
    ],
)
def test_invalid_concept_command_is_reported_in_one_line_and_keeps_the_library(
    expect_error, folder, library, words, message
):
    (folder / "page.safetensors").write_text("<!DOCTYPE html>")
    (folder / "old.pth").write_bytes(b"\x80\x02}q\x00")
    save_file({"lora_unet_conv_in.oft_diag": torch.ones(2, 2)}, folder / "oft.safetensors")
    before = {path: path.read_bytes() for path in library.iterdir()}
    expect_error("concepts", *words, message=message)
    assert {path: path.read_bytes() for path in library.iterdir()} == before
