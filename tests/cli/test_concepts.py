"""costars concepts: what is printed, what is written, and what is refused in one line."""

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
    path = tmp_path / "zxa v1.safetensors"
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(2, 48), f"{LAYER}.lora_up.weight": torch.ones(48, 2)}
    tags = json.dumps({"10_zxa": {"zxa": 10, "park": 2}})
    save_file(tensors, path, metadata={"ss_tag_frequency": tags, "modelspec.license": "CC0-1.0"})
    return path


def test_a_file_is_imported_listed_shown_cast_and_removed(cli, folder, library, kohya, write):
    code, out, err = cli("concepts", "import", kohya, "--name", "ana", "--class", "woman", "--trigger", "zxa")
    assert (code, out, err) == (0, "ana\n", "base model not told, 1 layers, woman, zxa\n")
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
def test_a_concept_is_written_for_other_programs_and_cast_again(cli, refused, folder, library, write, form):
    words = ["concepts", "export", "char_a", "--format", form, "--out", "ana.safetensors"]
    assert cli(*words) == (0, "ana.safetensors\n", "")
    refused(*words, said="ana.safetensors already exists; choose another --out, or add --replace")
    assert cli(*words, "--replace")[0] == 0
    write(a={"concept": "ana.safetensors"})
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0, err
    assert json.loads(cli("concepts", "inspect", "ana.safetensors")[1])["format"] == form
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_concept_of_words_becomes_a_folder(cli, refused, folder):
    save_file({"<zxa>": torch.ones(2, 768)}, folder / "zxa.safetensors")
    cli("concepts", "import", "zxa.safetensors", "--class", "cat")
    code, out, err = cli("concepts", "export", "zxa", "--format", "diffusers", "--out", "for others")
    assert (code, out, err) == (0, "for others/learned_embeds.safetensors\n", "")
    assert torch.equal(load_file(out.rstrip())["<zxa>"].float(), torch.ones(2, 768))
    refused("concepts", "export", "zxa", "--format", "kohya", "--out", "zxa2.safetensors", said="has embeddings, which the kohya")


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"weights": {"unet.conv_in": torch.ones(48, 4, 3, 3)}}, "has the full weight of 'unet.conv_in', not a pair"),
        ({"tokens": {"<mia1>": {"text_encoder": torch.ones(7, 32)}}, "per_layer": True}, "per-layer embeddings (ED-Lo"),
    ],
    ids=["dreambooth", "ed-lora"],
)
def test_what_other_programs_cannot_read_is_refused_in_one_line(refused, folder, library, form, parts, said):
    card = {"name": "mia", "class_name": "woman", "trigger": "mia", "family": "sdxl"}
    concept = Concept(**card, **{"adapter": {}, "source": "mia", "sha256": ""} | parts)
    write_concept(concept, card | {"per_layer": concept.per_layer}, library / "mia.safetensors")
    refused("concepts", "export", "mia", "--format", form, "--out", "others", said=said)
    refused("concepts", "export", "mia", "--format", form, "--out", "others", said="use the file written by costars")
    assert not (folder / "others").exists()


def test_concepts_that_were_taught_apart_get_common_weights(cli, refused, folder, library, tiny):
    keys = {n: m.weight for n, m in tiny.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    for i, name in enumerate(("mia", "rex")):
        weights = {f"unet.{path}": weight.detach() * (1.5 + i) for path, weight in keys.items()}
        words = {f"<{name}>": {e.name: torch.ones(1, 32) * (i + 1) for e in tiny.encoders}}
        said = {"name": name, "class_name": "cat", "trigger": f"<{name}>", "family": "sdxl"}
        facts = {"adapter": {}, "source": name, "sha256": "", "tokens": words, "weights": weights}
        write_concept(Concept(**said, **facts), said, library / f"{name}.safetensors")
    (folder / "captions.txt").write_text("a photo of the forest\n\na street at night\n")
    words = ["concepts", "merge", "mia", "rex", "--model", "tiny-sdxl", "--captions", "captions.txt", "--out", "both"]
    assert cli(*words) == (0, "both/mia.safetensors\nboth/rex.safetensors\n", "")
    one, other = (load_concept(folder / "both" / f"{name}.safetensors", "", "") for name in ("mia", "rex"))
    assert all(torch.equal(weight, other.weights[path]) for path, weight in one.weights.items())
    assert (one.trigger, list(one.tokens), other.trigger) == ("<mia>", ["<mia>"], "<rex>")
    refused(*words, said="both/mia.safetensors: is there already; name each concept once, give another --out")
    refused(*words[:3], "char_a", *words[4:], "--replace", said="char_a: has 0 whole layers")
    (folder / "captions.txt").write_text("\n")
    refused(*words, "--replace", said="--captions captions.txt: holds none; write a caption on each line")


def test_what_a_file_does_not_say_is_told_with_what_to_do(cli, kohya):
    code, out, err = cli("concepts", "import", kohya)
    assert (code, out) == (0, "zxa v1\n")
    assert err.splitlines() == [
        "base model not told, 1 layers, no class, no trigger",
        "its trigger may be among 'zxa', 'park'",
        "import it again with --class, --trigger and --replace to say more",
    ]


def test_a_name_is_replaced_only_when_asked_to(cli, refused, kohya, library):
    before = (library / "char_a.safetensors").read_bytes()
    said = "'char_a' is already in your library; choose another --name, or add --replace"
    refused("concepts", "import", kohya, "--name", "char_a", said=said)
    assert (library / "char_a.safetensors").read_bytes() == before
    assert cli("concepts", "import", kohya, "--name", "char_a", "--replace", "--class", "boy")[0] == 0
    assert json.loads(cli("concepts", "show", "char_a")[1])["class_name"] == "boy"


def test_an_ed_lora_becomes_a_file_of_ours(cli, library, tmp_path):
    params = {"new_concept_embedding": {"<zxa>": torch.ones(16, 768)}, "unet": {}}
    torch.save({"params": params}, tmp_path / "zxa.pth")
    code, out, err = cli("concepts", "import", tmp_path / "zxa.pth", "--class", "cat")
    assert (code, out, err) == (0, "zxa\n", "sd15, 1 words, cat, <zxa>\n")
    assert torch.equal(load_file(library / "zxa.safetensors")["tokens.text_encoder.<zxa>"].float(), torch.ones(16, 768))


def test_a_file_is_inspected_where_it_lies(cli, kohya, library):
    before = sorted(library.iterdir())
    code, out, err = cli("concepts", "inspect", kohya)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["format"], report["frequent_tags"], report["layers"]) == ("kohya", ["zxa", "park"], {"unet": 1})
    assert sorted(library.iterdir()) == before


def test_other_folders_are_listed_and_what_they_hide_is_told(cli, tmp_path, library, kohya, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lou.safetensors").write_bytes(kohya.read_bytes())
    monkeypatch.setenv("COSTARS_CONCEPT_FOLDERS", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    code, out, _ = cli("concepts", "list")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and [line.split()[0] for line in lines] == ["char_a", "char_b", "lou", "lou"]
    two, one = tmp_path / "two" / "lou.safetensors", tmp_path / "one" / "lou.safetensors"
    assert lines[-1] == f"lou hidden: {two} is not used, {one} has the same name"


def test_what_cannot_be_cast_is_listed_with_the_reason(cli, library, kohya):
    (library / "bad.safetensors").write_bytes(b"<html>")
    (library / "out.safetensors").symlink_to(kohya)
    lines = {line.split()[0]: line for line in cli("concepts", "list")[1].splitlines()}
    assert "damaged: bad.safetensors: is a web page" in lines["bad"]
    assert "damaged: out.safetensors is a link that leads out of its folder" in lines["out"]


def test_a_class_that_would_write_on_the_terminal_is_listed_in_plain_characters(cli, library, kohya):
    card = json.dumps({"class_name": "\x1b[2Jwoman"})
    save_file(load_file(kohya), library / "odd.safetensors", metadata={"costars": card})
    out = cli("concepts", "list")[1]
    assert "\x1b" not in out and "?[2Jwoman" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "gone.safetensors"], "gone.safetensors: no such file"),
        (["inspect", "gone.safetensors"], "gone.safetensors: no such file"),
        (["inspect", "page.safetensors"], "page.safetensors: is a web page instead of the file"),
        (["import", "page.safetensors"], "page.safetensors: is a web page instead of the file"),
        (["inspect", "old.pth"], "old.pth: is a pickle that cannot be opened safely"),
        (["import", "old.pth"], "old.pth: is a pickle that cannot be opened safely"),
        (["import", "old.pth", "--name", "../mine"], "--name '../mine': invalid name"),
        (["import", "lokr.safetensors"], "lokr.safetensors: is a LoKr ('lora_unet_conv_in.lokr_w1')"),
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
def test_a_bad_request_is_one_line_and_the_library_is_kept(refused, folder, library, words, said):
    (folder / "page.safetensors").write_text("<!DOCTYPE html>")
    (folder / "old.pth").write_bytes(b"\x80\x02}q\x00")
    save_file({"lora_unet_conv_in.lokr_w1": torch.ones(2, 2)}, folder / "lokr.safetensors")
    before = {path: path.read_bytes() for path in library.iterdir()}
    refused("concepts", *words, said=said)
    assert {path: path.read_bytes() for path in library.iterdir()} == before
