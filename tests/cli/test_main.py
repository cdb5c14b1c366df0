"""costars plan and render: the files they write; scene, plan and picture give the same result."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from costars.cli.summary import describe_lost
from costars.jobs import RenderJob
from costars.studio import Studio
from costars.types import Picture, Plan, RegionError


def files(home: Path, name: str = "out") -> set[str]:
    return {str(p.relative_to(home / name)) for p in (home / name).rglob("*") if p.is_file()}


def test_render_writes_picture_layout_masks_and_result(cli, folder):
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


def test_edited_mask_and_settings_change_the_picture_of_a_plan(cli, folder):
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


@pytest.mark.parametrize("method", ["multi_lora", "{name: two_stage, cross_replace_steps: 0.5}"])
def test_picture_of_another_method_renders_again_from_itself(cli, folder, method):
    assert cli("render", "scene.yaml", "--out", "out", "--set", f"method={method}")[0] == 0
    (folder / "again.png").write_bytes((folder / "out" / "picture.png").read_bytes())
    code, _, err = cli("render", "again.png", "--out", "again")
    assert code == 0, err
    assert (folder / "again" / "picture.png").read_bytes() == (folder / "out" / "picture.png").read_bytes()


def test_a_picture_is_rendered_again_with_its_rows_per_call(cli, folder, monkeypatch):
    def rows_of(name):
        return json.loads((folder / name / "result.json").read_text())["max_rows"]

    assert cli("render", "scene.yaml", "--out", "out", "--max-rows", "3")[0] == 0
    (folder / "again.png").write_bytes((folder / "out" / "picture.png").read_bytes())
    assert cli("render", "again.png", "--out", "again")[0] == 0
    assert rows_of("out") == rows_of("again") == 3
    assert (folder / "again" / "picture.png").read_bytes() == (folder / "out" / "picture.png").read_bytes()
    assert cli("render", "again.png", "--out", "given", "--max-rows", "2")[0] == 0
    monkeypatch.setenv("COSTARS_MAX_ROWS", "4")
    assert cli("render", "again.png", "--out", "limited")[0] == 0
    assert (rows_of("given"), rows_of("limited")) == (2, 4)


def test_concepts_are_listed_and_shown(cli, folder):
    code, out, _ = cli("concepts", "list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["char_a", "man"], ["char_b", "woman"]]
    code, out, _ = cli("concepts", "show", "char_b")
    shown = json.loads(out)
    assert code == 0
    assert (shown["class_name"], shown["ranks"], shown["layers"], len(shown["sha256"])) == ("woman", [3], 164, 64)


def test_retries_report_the_seed_that_was_used(cli, folder, monkeypatch):
    plan_steps = Studio.plan_steps

    def misses_twice(self, scene):
        if scene.seed < 5:
            raise RegionError("the layout does not show b")
        yield from plan_steps(self, scene)

    monkeypatch.setattr(Studio, "plan_steps", misses_twice)
    code, _, err = cli("plan", "scene.yaml", "--out", "plan", "--retries", "4")
    assert code == 0 and "seed 5" in err and "seeds that left a member out: 3, 4" in err
    assert json.loads((folder / "plan" / "plan.json").read_text())["scene"]["seed"] == 5


def test_version_is_printed(cli):
    assert cli("--version") == (0, f"costars {version('costars')}\n", "")


def test_count_renders_the_same_pictures_as_single_seeds(cli, folder):
    code, out, _ = cli("render", "scene.yaml", "--out", "many", "--set", "count=2")
    assert (code, out.split()) == (0, ["many/3/picture.png", "many/4/picture.png"])
    assert cli("render", "scene.yaml", "--out", "one", "--seed", "4")[0] == 0
    assert (folder / "many" / "4" / "picture.png").read_bytes() == (folder / "one" / "picture.png").read_bytes()


def test_style_and_control_change_the_picture_and_are_embedded_in_it(cli, folder, library, tiny):
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
        assert cli("render", "again.png", "--out", "again", "--replace")[0] == 0
        assert (folder / "again" / "picture.png").read_bytes() == (folder / name / "picture.png").read_bytes()
    assert cli("render", "scene.yaml", "--out", "plain")[0] == 0
    assert len(made | {(folder / "plain" / "layout.png").read_bytes()}) == 3


def test_layers_missing_in_the_model_are_noted(cli, folder, library):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(library / "char_a.safetensors")
    tensors |= {"unet.no.such.lora_A.weight": torch.zeros(1, 4), "unet.no.such.lora_B.weight": torch.zeros(4, 1)}
    card = '{"class_name": "man", "trigger": "a", "family": "sdxl"}'
    save_file(tensors, library / "char_a.safetensors", metadata={"costars": card})
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0 and "layers of 'char_a' are not in this model" in " ".join(err.split())
    assert json.loads((folder / "out" / "result.json").read_text())["notes"][0].startswith("a: 1 of ")


def test_files_that_changed_since_a_picture_or_plan_are_named(cli, expect_error, folder, library):
    assert cli("render", "scene.yaml", "--out", "out")[0] == 0
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    (folder / "one.png").write_bytes((folder / "out" / "picture.png").read_bytes())
    assert "is another file" not in cli("render", "one.png", "--out", "same")[2]
    path = library / "char_a.safetensors"
    with safe_open(path, framework="pt") as file:
        card = file.metadata()
    save_file({key: 2 * tensor for key, tensor in load_file(path).items()}, path, metadata=card)
    code, _, err = cli("render", "one.png", "--out", "other")
    assert code == 0 and "cast.a.concept: is another file than one.png was made with" in err
    facts = json.loads((folder / "plan" / "plan.json").read_text())
    facts["hashes"]["model"] = "0" * 64
    (folder / "plan" / "plan.json").write_text(json.dumps(facts))
    message = "model: is another file than the plan was drawn with; plan the scene again"
    expect_error("render", "plan", "--out", "late", message=message)


def test_picture_with_edited_masks_cannot_be_rendered_again(cli, folder):
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


@pytest.mark.parametrize(
    ("edited", "job", "remedy"),
    [
        (False, {}, "try another --seed, or --retries 5"),
        (False, {"retries": 5}, "6 seeds were tried; start from another --seed, set its place (cast.a.where)"),
        (False, {"plan_folder": Path("plan")}, "plan the scene with another --seed"),
        (True, {"plan_folder": Path("plan")}, "check its mask and depth in the plan"),
    ],
)
def test_advice_about_an_invisible_member_is_none_that_was_tried(edited, job, remedy, make_scene):
    scene = make_scene()
    plan = Plan(scene, None, {}, edited=edited)
    picture = Picture(None, scene, plan, {}, {}, {}, {}, lost=("a", "b"), seen_as={"b": "dog"})
    lost, seen_as = describe_lost(picture, RenderJob(scene=scene, out=Path("out"), **job))
    assert lost.startswith("a is not visible where the plan has a; ") and remedy in lost
    assert seen_as.startswith("b looks like a dog where the plan has b; ")
    assert job == {} or "--retries" not in lost


def test_an_earlier_result_is_replaced_only_on_request(cli, folder):
    for command, record in (("plan", "plan.json"), ("render", "result.json")):
        assert cli(command, "scene.yaml", "--out", command)[0] == 0
        before = (folder / command / record).read_bytes()
        code, out, err = cli(command, "scene.yaml", "--out", command, "--seed", "9")
        assert (code, out) == (2, "") and "of an earlier run; choose another folder, or use --replace" in err
        assert (folder / command / record).read_bytes() == before
        assert cli(command, "scene.yaml", "--out", command, "--seed", "9", "--replace")[0] == 0
        assert (folder / command / record).read_bytes() != before


def test_a_random_seed_is_told_and_kept(cli, folder):
    code, _, err = cli("render", "scene.yaml", "--out", "out", "--seed", "random", "--set", "steps=1")
    seed = json.loads((folder / "out" / "result.json").read_text())["seed"]
    assert code == 0 and f"seed {seed}" in err.splitlines() and seed != 3
    (folder / "again.png").write_bytes((folder / "out" / "picture.png").read_bytes())
    assert cli("render", "again.png", "--out", "again")[0] == 0
    assert (folder / "again" / "picture.png").read_bytes() == (folder / "out" / "picture.png").read_bytes()


def test_count_with_retries_gives_that_many_good_pictures_with_seeds_of_their_own(cli, folder, monkeypatch):
    render_steps = Studio.render_steps

    def misses_some(self, scene):
        if scene.seed in (4, 6):
            raise RegionError("the layout does not show b")
        yield from render_steps(self, scene)

    monkeypatch.setattr(Studio, "render_steps", misses_some)
    words = ("render", "scene.yaml", "--count", "3", "--set", "steps=1")
    code, out, err = cli(*words, "--out", "many", "--retries", "4")
    assert (code, out.split()) == (0, [f"many/{seed}/picture.png" for seed in (3, 5, 7)])
    assert "seeds that left a member out: 4, 6" in err
    code, out, err = cli(*words, "--out", "few", "--retries", "1")
    assert (code, out.split()) == (2, ["few/3/picture.png", "few/5/picture.png"])
    assert "2 of 3 pictures; seeds 3 to 6 were tried, this is the last: the layout does not show b" in err
    code, _, err = cli(*words, "--out", "many")
    assert code == 2 and "many/3: contains a picture of an earlier run" in err


def test_a_rendered_plan_prints_its_own_seconds_only(cli, folder):
    assert "; seconds: load" in cli("render", "scene.yaml", "--out", "out")[2]
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    _, _, err = cli("render", "plan", "--out", "planned")
    assert "personalise" in err and "layout 0" not in err and "segment" not in err and "(in the plan)" in err


def test_notes_come_before_the_first_step_and_once(cli, folder):
    err = cli("render", "scene.yaml", "--out", "out")[2].splitlines()
    notes = [i for i, line in enumerate(err) if line.startswith("size 64x64: the model was made for 256x256")]
    assert len(notes) == 1 and notes[0] < next(i for i, line in enumerate(err) if line.startswith("layout "))


def test_two_runs_at_once_do_not_share_a_folder(cli, folder):
    from costars.files.folder_claim import claim_folder

    with claim_folder(folder / "out"):
        code, _, err = cli("render", "scene.yaml", "--out", "out")
        assert code == 2 and "--out out: another run is writing into it; wait" in err
    assert not any((folder / "out").iterdir())
    assert cli("render", "scene.yaml", "--out", "out")[0] == 0


def test_completion_of_the_shell_names_the_commands():
    import os
    import subprocess
    import sys

    environment = os.environ | {"_COSTARS_COMPLETE": "complete_bash", "COMP_WORDS": "costars re", "COMP_CWORD": "1"}
    words = [sys.executable, "-c", "import sys; sys.argv = ['costars']; from costars.cli.main import main; main()"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["render"] and done.stderr == ""
