"""The command line: what it writes, and that scene, plan and picture are three ways to one result."""

import hashlib
import io
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from costars.cli.main import _told
from costars.errors import RegionError
from costars.studio import Studio
from costars.types import Picture, Plan


def files(home: Path, name: str = "out") -> set[str]:
    return {str(p.relative_to(home / name)) for p in (home / name).rglob("*") if p.is_file()}


def test_a_render_writes_the_picture_and_all_that_it_came_from(cli, folder):
    code, out, err = cli("render", "scene.yaml", "--out", "out", "--dtype", "float32")
    assert (code, out.strip()) == (0, "out/picture.png")
    assert "UNet rows: stage 1 8, stage 2 21" in err
    assert files(folder) == {"picture.png", "layout.png", "sheet.png", "result.json", "masks/a.png", "masks/b.png"}
    result = json.loads((folder / "out" / "result.json").read_text())
    assert (result["seed"], result["rows"]) == (3, {"stage1": 8, "stage2": 21})
    assert [(r["name"], r["class_name"], r["area"]) for r in result["regions"]] == [
        ("a", "man", 0.5),
        ("b", "woman", 0.5),
    ]
    assert not [p for p in folder.iterdir() if "part" in p.name]


def test_scene_plan_and_picture_render_to_the_same_bytes(cli, folder):
    assert cli("render", "scene.yaml", "--out", "direct")[0] == 0
    assert cli("plan", "scene.yaml", "--out", "plan")[:2] == (0, "plan/plan.json\n")
    assert cli("render", "plan", "--out", "planned")[0] == 0
    (folder / "again.png").write_bytes((folder / "direct" / "picture.png").read_bytes())
    assert cli("render", "again.png", "--out", "again")[0] == 0
    pictures = [(folder / name / "picture.png").read_bytes() for name in ("direct", "planned", "again")]
    assert pictures[0] == pictures[1] == pictures[2]
    assert cli("render", "scene.yaml", "--out", "other", "--seed", "4")[0] == 0
    assert (folder / "other" / "picture.png").read_bytes() != pictures[0]


def test_an_edited_mask_and_other_settings_change_the_picture_of_a_plan(cli, folder):
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    assert cli("render", "plan", "--out", "before")[0] == 0
    assert cli("render", "plan", "--out", "lighter", "--set", "cast.a.weight=0.2")[0] == 0
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[32:, :32] = 255
    Image.fromarray(mask).save(folder / "plan" / "masks" / "a.png")
    assert cli("render", "plan", "--out", "after")[0] == 0
    pictures = {(folder / name / "picture.png").read_bytes() for name in ("before", "lighter", "after")}
    assert len(pictures) == 3
    regions = json.loads((folder / "after" / "result.json").read_text())["regions"]
    assert regions[0]["area"] == 0.25


@pytest.mark.parametrize("method", ["multi_lora", "{name: two_stage, layout_strength: 0.5}"])
def test_a_picture_of_another_method_renders_again_from_itself(cli, folder, method):
    assert cli("render", "scene.yaml", "--out", "out", "--set", f"method={method}")[0] == 0
    (folder / "again.png").write_bytes((folder / "out" / "picture.png").read_bytes())
    code, _, err = cli("render", "again.png", "--out", "again")
    assert code == 0, err
    assert (folder / "again" / "picture.png").read_bytes() == (folder / "out" / "picture.png").read_bytes()


def test_concepts_are_listed_and_shown(cli, folder):
    code, out, _ = cli("concepts", "list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["char_a", "man"], ["char_b", "woman"]]
    code, out, _ = cli("concepts", "show", "char_b")
    shown = json.loads(out)
    assert code == 0
    assert (shown["class_name"], shown["ranks"], shown["layers"], len(shown["sha256"])) == ("woman", [3], 164, 64)


def test_seeds_that_did_not_show_everyone_are_told(cli, folder, monkeypatch):
    plan_steps = Studio.plan_steps

    def misses_twice(self, scene, base=None):
        if scene.seed < 5:
            raise RegionError("the layout does not show b")
        yield from plan_steps(self, scene, base)

    monkeypatch.setattr(Studio, "plan_steps", misses_twice)
    code, _, err = cli("plan", "scene.yaml", "--out", "plan", "--retries", "4")
    assert code == 0 and "this is seed 5: 3, 4 left someone out" in err
    assert json.loads((folder / "plan" / "plan.json").read_text())["scene"]["seed"] == 5


def test_the_version_is_told(cli):
    assert cli("--version") == (0, f"costars {version('costars')}\n", "")


def test_the_doctor_says_what_is_missing(cli, tmp_path):
    code, out, _ = cli("doctor")
    lines = {line[5:19].strip(): (line[:4].strip(), line[20:]) for line in out.splitlines()}
    assert code == 1
    assert lines["builtin model"][0] == "MISS" and "nothing-shipped" in lines["builtin model"][1]
    assert lines["concepts"] == ("ok", "2 found")
    assert {lines[name][0] for name in ("python", "torch", "diffusers", "peft", "device", "memory")} == {"ok"}


def test_several_pictures_are_as_if_each_were_asked_for_alone(cli, folder):
    code, out, _ = cli("render", "scene.yaml", "--out", "many", "--set", "count=2")
    assert (code, out.split()) == (0, ["many/3/picture.png", "many/4/picture.png"])
    assert cli("render", "scene.yaml", "--out", "one", "--seed", "4")[0] == 0
    assert (folder / "many" / "4" / "picture.png").read_bytes() == (folder / "one" / "picture.png").read_bytes()


def test_a_style_and_a_control_change_the_picture_and_render_again_from_it(cli, folder, library, tiny):
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(tiny.unet)
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        block.weight.data.fill_(0.05)
    net.save_pretrained(folder / "pose")
    Image.new("RGB", (64, 64), "white").save(folder / "pose.png")
    settings = {"style": "{concept: char_b}", "controls": "[{model: pose, image: pose.png}]"}
    files = {"style.concept": library / "char_b.safetensors"}
    files["controls.0.image"] = folder / "pose.png"
    files["controls.0.model"] = folder / "pose" / "diffusion_pytorch_model.safetensors"
    made = set()
    for name, value in settings.items():
        assert cli("render", "scene.yaml", "--out", name, "--set", f"{name}={value}")[0] == 0
        made.add((folder / name / "layout.png").read_bytes())
        hashes = json.loads((folder / name / "result.json").read_text())["hashes"]
        for key in (key for key in files if key.startswith(name)):
            assert hashes[key] == hashlib.sha256(files[key].read_bytes()).hexdigest()
        (folder / "again.png").write_bytes((folder / name / "picture.png").read_bytes())
        assert cli("render", "again.png", "--out", "again")[0] == 0
        assert (folder / "again" / "picture.png").read_bytes() == (folder / name / "picture.png").read_bytes()
    assert cli("render", "scene.yaml", "--out", "plain")[0] == 0
    assert len(made | {(folder / "plain" / "layout.png").read_bytes()}) == 3


def test_layers_that_the_model_lacks_are_told(cli, folder, library):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(library / "char_a.safetensors")
    tensors |= {"unet.no.such.lora_A.weight": torch.zeros(1, 4), "unet.no.such.lora_B.weight": torch.zeros(4, 1)}
    card = '{"class_name": "man", "trigger": "a", "family": "sdxl"}'
    save_file(tensors, library / "char_a.safetensors", metadata={"costars": card})
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0 and "layers of 'char_a' are not in this model" in " ".join(err.split())
    assert json.loads((folder / "out" / "result.json").read_text())["notes"][0].startswith("a: 1 of ")


def test_a_picture_of_edited_masks_says_that_it_does_not_hold_them(cli, folder):
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    assert cli("render", "plan", "--out", "same")[0] == 0
    (folder / "same.png").write_bytes((folder / "same" / "picture.png").read_bytes())
    assert cli("plan", "same.png", "--out", "again")[0] == 0
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:, :32] = 255
    Image.fromarray(mask).save(folder / "plan" / "masks" / "a.png")
    assert cli("render", "plan", "--out", "edited")[0] == 0
    code, _, err = cli("render", "edited/picture.png", "--out", "other")
    assert code == 2 and "from a plan whose masks were edited" in err and not (folder / "other").exists()


@pytest.mark.parametrize(("edited", "mend"), [(False, "another seed or --retries"), (True, "its mask and depth")])
def test_who_is_lost_is_told_with_what_may_help(edited, mend, make_scene, monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr("costars.cli.main.console", console)
    scene = make_scene()
    plan = Plan(scene, None, {}, edited=edited)
    _told(Picture(None, scene, plan, {}, {"stage1": 8, "stage2": 21}, {}, {}, lost=("a",)))
    assert "a cannot be seen where the plan has a; " in console.file.getvalue() and mend in console.file.getvalue()
