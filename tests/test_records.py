"""Files: plans and pictures come back as they were, whole or not at all."""

import json
import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from costars.errors import SceneError
from costars.files.output_folder import check_output_folder
from costars.records.layout_inputs import with_scene
from costars.records.plan import read_plan, write_plan
from costars.records.png_metadata import dump, png, write_failure, write_picture
from costars.scene.files import anchor_paths
from costars.scene.scene import parse_scene
from costars.types import Layout, Picture, Plan, RegionError

VERSIONS = {"costars": "0", "model_sha256": "abcdef0123456789", "scheduler": "EulerDiscreteScheduler"}
HASHES = {"cast.a.concept": "1f", "cast.b.concept": "2e"}


@pytest.fixture
def plan(make_scene, make_region) -> Plan:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    layout = Layout(image, torch.randn(11, 4, 8, 8), {"man 0": np.ones((8, 8), np.float32)}, "a man and a woman", 20)
    regions = {
        "a": make_region("man", (0, 0, 0.5, 1), 0.9, 1),
        "b": make_region("woman", (0.5, 0.25, 1, 1), 0.8, 0),
    }
    return Plan(make_scene(), layout, regions, {"layout": 1.5, "segment": 0.5})


@pytest.fixture
def picture(plan) -> Picture:
    seconds = {"load": 1.0, "layout": 1.5, "segment": 0.5, "personalise": 3.0, "decode": 0.1}
    image = Image.new("RGB", (64, 64), "teal")
    return Picture(image, plan.scene, plan, HASHES, {"stage1": 20, "stage2": 49}, seconds, VERSIONS)


def test_a_plan_comes_back_as_it_was(plan, tmp_path):
    plan = replace(plan, notes=("a note",), extra_figures=("dog",), layout=replace(plan.layout, notes=("in tiles",)))
    write_plan(plan, tmp_path / "plan")
    names = {str(p.relative_to(tmp_path / "plan")) for p in (tmp_path / "plan").rglob("*") if p.is_file()}
    assert names == {"plan.json", "layout.png", "layout.safetensors", "masks/a.png", "masks/b.png", "sheet.png"}
    back = read_plan(tmp_path / "plan")
    assert back.scene == plan.scene and back.seconds == plan.seconds
    assert (back.notes, back.extra_figures) == (("in tiles", "a note"), ("dog",))
    assert torch.equal(back.layout.latents, plan.layout.latents)
    assert back.layout.image.tobytes() == plan.layout.image.tobytes()
    assert (back.layout.prompt, back.layout.rows) == ("a man and a woman", 20)
    assert np.array_equal(back.layout.maps["man 0"], plan.layout.maps["man 0"])
    for name, region in plan.regions.items():
        assert np.array_equal(back.regions[name].mask, region.mask)
        assert replace(back.regions[name], mask=region.mask) == region


@pytest.mark.parametrize("method", ["multi_lora", {"name": "two_stage", "blend": False}, {"name": "two_stage"}])
def test_a_scene_in_a_file_can_be_read_again(make_scene, method):
    scene = make_scene(method=method, model="tiny", scheduler="ddim", start=0.5, seed=0)
    assert parse_scene(json.loads(json.dumps(dump(scene)))) == scene


def test_no_absolute_path_is_written_whatever_names_a_file(make_scene):
    home = "/home/me"
    scene = make_scene(
        checkpoint={"vae": f"{home}/vae", "config": f"{home}/config"},
        style={"concept": f"{home}/ink.safetensors"},
        controls=[{"model": f"{home}/pose", "image": f"{home}/pose.png"}],
        segmenter={"name": "grounded_sam", "detector": f"{home}/dino", "sam": "facebook/sam-vit-huge"},
    )
    written = dump(scene)
    assert home not in json.dumps(written)
    assert written["segmenter"]["sam"] == "facebook/sam-vit-huge" and written["controls"][0]["image"] == "pose.png"


def test_a_plan_finds_what_lay_beside_its_scene(plan, tmp_path):
    (tmp_path / "left").mkdir()
    (tmp_path / "pose.png").touch()
    controls = [{"model": "left", "image": "pose.png"}]
    cast = {"a": {"concept": "char_a", "where": "left"}, "b": {"concept": "char_b"}}
    scene = parse_scene({**dump(plan.scene), "controls": controls, "cast": cast})
    write_plan(replace(plan, scene=anchor_paths(scene, tmp_path)), tmp_path / "plan")
    told = json.loads((tmp_path / "plan" / "plan.json").read_text())["scene"]
    assert told["controls"][0]["model"] == str(tmp_path / "left")
    assert told["controls"][0]["image"] == str(tmp_path / "pose.png")
    assert told["cast"]["a"]["where"] == "left"


def test_no_absolute_path_is_written(make_scene):
    cast = {"a": {"concept": "/home/me/char_a.safetensors", "where": "/home/me/mask.png"}, "b": {"concept": "b"}}
    written = dump(make_scene(cast=cast, model="/home/me/models/tiny"))
    assert written["model"] == "tiny"
    assert (written["cast"]["a"]["concept"], written["cast"]["a"]["where"]) == ("char_a.safetensors", "mask.png")
    assert "/home" not in json.dumps(written)


def test_a_mask_may_be_edited(plan, tmp_path):
    write_plan(plan, tmp_path)
    Image.new("L", (64, 64), 255).save(tmp_path / "masks" / "a.png")
    assert read_plan(tmp_path).regions["a"].area == 1


def break_json(folder, **changes):
    facts = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(facts | changes))


def break_tensors(folder, **changes):
    """Change tensors of a plan; None removes one."""
    tensors = load_file(folder / "layout.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "layout.safetensors")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "masks" / "b.png").unlink(), "b.png"),
        (lambda f: (f / "layout.png").unlink(), "layout.png"),
        (lambda f: (f / "layout.safetensors").write_bytes(b"\x01" * 40), "not a readable plan"),
        (lambda f: (f / "layout.safetensors").unlink(), "not a readable plan"),
        (lambda f: (f / "plan.json").unlink(), "plan.json"),
        (lambda f: (f / "plan.json").write_text("{"), "not a readable plan"),
        (lambda f: (f / "plan.json").write_text("[]"), "not a readable plan"),
        (lambda f: break_json(f, regions=[]), "regions are of [], the cast is ['a', 'b']"),
        (
            lambda f: break_json(f, regions=[{"name": "a"}]),
            "not a readable plan (regions.0.class_name: Field required)",
        ),
        (lambda f: break_json(f, regions="x"), "not a readable plan (regions: Input should be a valid list)"),
        (lambda f: break_json(f, scene=3), "not a readable plan (scene: Input should be a valid dictionary)"),
        (lambda f: break_json(f, layout={"prompt": 3}), "not a readable plan (layout.prompt: "),
        (lambda f: break_json(f, seconds={"layout": "x"}), "not a readable plan (seconds.layout: "),
        (lambda f: break_json(f, layout_sha256="0" * 64), "is not the one that plan.json was written with"),
        (lambda f: Image.new("RGB", (64, 64)).save(f / "layout.png"), "is not the one that plan.json was written with"),
        (
            lambda f: break_tensors(f, latents=torch.zeros(11, 4, 8, 8)),
            "is not the one that plan.json was written with",
        ),
        (lambda f: break_tensors(f, latents=torch.full((11, 4, 8, 8), torch.nan)), "is not of finite numbers"),
        (lambda f: break_tensors(f, latents=torch.zeros(11, 4, 8, 8, dtype=torch.int32)), "is not of finite numbers"),
        (
            lambda f: break_tensors(f, latents=torch.zeros(11, 4, 8)),
            "'latents' is (11, 4, 8), want (steps + 1, channels",
        ),
        (lambda f: break_tensors(f, latents=None), "layout.safetensors has no latents"),
        (lambda f: break_tensors(f, more=torch.zeros(2, 2)), "'more' is not part of a layout"),
        (lambda f: break_tensors(f, **{"map/man 0": torch.zeros(2)}), "'map/man 0' is (2,), want (height, width)"),
        (lambda f: (f / "layout.safetensors").write_bytes((f / "layout.safetensors").read_bytes()[:-4]), "truncated"),
        (lambda f: Image.new("L", (32, 32), 255).save(f / "masks" / "a.png"), "masks/a.png: is 32 x 32 px; save"),
        (lambda f: Image.new("RGB", (64, 64), "red").save(f / "masks" / "a.png"), "masks/a.png: has colours; save"),
        (lambda f: (f / "masks" / "a.png").write_text("text"), "px, white where a is"),
    ],
)
def test_a_plan_with_something_missing_or_damaged_is_refused(plan, tmp_path, harm, said):
    write_plan(plan, tmp_path)
    harm(tmp_path)
    with pytest.raises(SceneError) as caught:
        read_plan(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_drawn_in_other_steps_is_refused(plan, tmp_path):
    write_plan(plan, tmp_path)
    facts = json.loads((tmp_path / "plan.json").read_text())
    break_json(tmp_path, scene=facts["scene"] | {"steps": 20})
    with pytest.raises(SceneError, match="steps: the plan was drawn with 10, now it is 20; plan the scene again"):
        read_plan(tmp_path)


def test_depths_given_later_are_taken_over(plan):
    cast = {
        name: member.model_copy(update={"depth": 3}) if name == "b" else member
        for name, member in plan.scene.cast.items()
    }
    changed = with_scene(plan, plan.scene.model_copy(update={"cast": cast}))
    assert [r.depth for r in changed.regions.values()] == [0, 1]
    assert changed.scene.cast["b"].depth == 3
    assert changed.layout is plan.layout


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 5), ("steps", 20), ("size", (96, 64)), ("guidance_scale", 2.0), ("scheduler", "ddim")]
)
def test_what_the_layout_was_drawn_with_cannot_be_changed(plan, field, value):
    with pytest.raises(SceneError, match=f"{field}: the plan was drawn with .*; plan the scene again"):
        with_scene(plan, plan.scene.model_copy(update={field: value}))


def test_a_plan_finds_the_files_beside_its_scene_wherever_it_lies(plan, tmp_path):
    (tmp_path / "scene").mkdir()
    for name in ("mine.safetensors", "left.png"):
        (tmp_path / "scene" / name).write_bytes(b"")
    member = plan.scene.cast["a"].model_copy(update={"concept": "mine.safetensors", "where": "left.png"})
    scene = plan.scene.model_copy(update={"cast": plan.scene.cast | {"a": member}})
    write_plan(replace(plan, scene=anchor_paths(scene, tmp_path / "scene")), tmp_path / "plan")
    back = read_plan(tmp_path / "plan").scene.cast
    assert back["a"].concept == str(tmp_path / "scene" / "mine.safetensors")
    assert back["a"].where == str(tmp_path / "scene" / "left.png")
    assert back["b"] == plan.scene.cast["b"]


def test_the_built_in_model_is_not_a_folder_of_that_name(plan, tmp_path):
    (tmp_path / "builtin").mkdir()
    scene = anchor_paths(plan.scene.model_copy(update={"model": "builtin"}), tmp_path)
    write_plan(replace(plan, scene=scene), tmp_path / "plan")
    assert read_plan(tmp_path / "plan").scene.model == "builtin"


def test_a_picture_is_five_kinds_of_file(picture, tmp_path):
    write_picture(picture, tmp_path / "out")
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {"picture.png", "layout.png", "sheet.png", "result.json", "masks/a.png", "masks/b.png"}
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result) == ["scene", "seed", "rows", "seconds", "regions", "versions", "hashes", "memory", "max_rows"]
    assert list(result["seconds"]) == ["load", "layout", "segment", "personalise", "decode"]
    assert list(result["rows"]) == ["stage1", "stage2"]
    assert list(result["regions"][0]) == ["name", "class_name", "box", "score", "depth", "area"]
    assert result["regions"][1]["box"] == [0.5, 0.25, 1, 1] and result["regions"][1]["area"] == 0.375


def test_a_picture_holds_its_scene_and_what_others_read(picture):
    image = Image.open(BytesIO(png(picture)))
    facts = json.loads(image.info["costars"])
    assert facts == {"scene": dump(picture.scene), "hashes": HASHES, "versions": VERSIONS, "max_rows": 0}
    assert image.info["parameters"].splitlines() == [
        "photo of a and b in the forest",
        "Steps: 10, Sampler: EulerDiscreteScheduler, CFG scale: 5.0, Seed: 0, Size: 64x64, "
        "Emphasis: No norm, Model hash: abcdef0123, Model: tiny-sdxl, Version: costars 0",
    ]
    assert image.tobytes() == picture.image.tobytes()
    assert png(picture) == png(replace(picture, seconds={"load": 99.0}))


def test_the_record_tells_how_much_of_each_concept_is_in_the_model(picture, tmp_path):
    write_picture(replace(picture, layer_counts={"a": "12 of 12 layers"}), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["layer_counts"] == {"a": "12 of 12 layers"}


def test_a_picture_without_a_plan_has_neither_layout_nor_masks(picture, tmp_path):
    write_picture(replace(picture, plan=None), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"picture.png", "sheet.png", "result.json"}
    assert json.loads((tmp_path / "result.json").read_text())["regions"] == []


def test_a_failure_leaves_the_layout_and_all_that_was_found(plan, tmp_path):
    write_failure(RegionError("who", plan.layout, tuple(plan.regions.values())), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out" / "masks").iterdir()} == {"0-man.png", "1-woman.png"}
    assert (tmp_path / "out" / "layout.png").is_file()
    write_failure(RegionError("who"), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_new_run_leaves_nothing_of_an_older_one(picture, tmp_path):
    write_picture(picture, tmp_path)
    write_picture(replace(picture, plan=None), tmp_path, replace=True)
    assert {p.name for p in tmp_path.rglob("*")} == {"picture.png", "sheet.png", "result.json"}


def test_a_folder_with_files_that_are_not_ours_keeps_them(plan, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mine.png").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    write_plan(plan, tmp_path)
    write_plan(plan, tmp_path, replace=True)
    assert (tmp_path / "masks" / "mine.png").read_bytes() == b"mine"
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["layout.png", "masks/a.png", "plan.json"])
def test_nothing_is_written_over_a_file_that_is_not_ours(plan, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    with pytest.raises(SceneError, match="which costars did not write"):
        write_plan(plan, tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_bytes() == b"mine"


def test_a_run_after_one_that_failed_takes_its_place(plan, tmp_path):
    regions = tuple(plan.regions.values())
    write_failure(RegionError("b is missing", plan.layout, regions), tmp_path)
    assert json.loads((tmp_path / "missing.json").read_text())["missing"] == "b is missing"
    write_plan(plan, tmp_path)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"plan.json", "layout.png", "layout.safetensors", "masks/a.png", "masks/b.png", "sheet.png"}


def test_nothing_of_an_earlier_run_is_replaced_unless_that_is_asked_for(plan, picture, tmp_path):
    for write, value in ((write_plan, plan), (write_picture, picture)):
        out = tmp_path / write.__name__
        write(value, out)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(SceneError, match=r"of an earlier run; choose another folder, or use --replace"):
            write(value, out)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        write(value, out, replace=True)


def test_a_folder_of_a_picture_is_no_plan_and_told_so(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(SceneError, match=r"has no plan.json; to draw its picture again, render .*picture.png"):
        read_plan(tmp_path)


def test_a_picture_and_a_plan_never_take_each_others_place(plan, picture, tmp_path):
    write_plan(plan, tmp_path / "plan")
    write_picture(picture, tmp_path / "picture")
    check_output_folder(tmp_path / "plan", "plan")
    check_output_folder(tmp_path / "picture", "picture")
    with pytest.raises(SceneError, match="contains a plan of an earlier run"):
        check_output_folder(tmp_path / "plan", "picture")
    with pytest.raises(SceneError, match="contains a picture of an earlier run"):
        check_output_folder(tmp_path / "picture", "plan")


def test_a_failure_leaves_the_picture_that_was_there(plan, picture, tmp_path):
    write_picture(picture, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    place = write_failure(RegionError("who", plan.layout, tuple(plan.regions.values())), tmp_path)
    assert place == tmp_path / "missing" and (place / "missing.json").is_file()
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_stop_while_files_are_replaced_leaves_a_folder_that_is_still_ours(picture, tmp_path, monkeypatch):
    write_picture(picture, tmp_path / "out")
    before = (tmp_path / "out" / "result.json").read_bytes()
    moved = []

    def stopped(source, target):
        if target.name == "result.json":
            raise KeyboardInterrupt
        moved.append(target)
        shutil.move(source, target)

    monkeypatch.setattr("costars.files.output_folder.os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_picture(replace(picture, rows={"stage1": 1, "stage2": 2}), tmp_path / "out", replace=True)
    assert len(moved) == 5 and (tmp_path / "out" / "result.json").read_bytes() == before
    monkeypatch.undo()
    write_picture(picture, tmp_path / "out", replace=True)
    assert not list((tmp_path / "out").glob(".costars*"))


def test_a_record_that_names_files_elsewhere_loses_none_of_them(picture, tmp_path):
    write_picture(picture, tmp_path / "out")
    (tmp_path / "mine.png").write_bytes(b"mine")
    record = tmp_path / "out" / "result.json"
    facts = json.loads(record.read_text())
    facts["regions"][0]["name"] = "../../mine"
    record.write_text(json.dumps(facts))
    (tmp_path / "out" / "masks" / "a.png").unlink()
    write_picture(picture, tmp_path / "out", replace=True)
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_a_plan_lies_in_a_folder_of_any_name(plan, tmp_path):
    folder = tmp_path / "caf\udce9 [/x]\n"
    write_plan(plan, folder)
    assert read_plan(folder).scene == plan.scene


def test_a_plan_of_another_model_or_size_is_refused_before_drawing(plan, tiny, make_scene, concepts, finish):
    from costars.methods.omg.stages import personalise
    from costars.resolve import resolve_scene

    resolved = resolve_scene(make_scene(), tiny, concepts)
    for latents in (torch.zeros(10, 4, 8, 8), torch.zeros(11, 3, 8, 8), torch.zeros(11, 4, 4, 8)):
        with pytest.raises(SceneError, match=r"the plan's layout has latents .*; 10 steps of this model give \(11, 4"):
            finish(personalise(resolved, replace(plan, layout=replace(plan.layout, latents=latents))))
