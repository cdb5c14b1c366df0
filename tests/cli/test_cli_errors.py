"""A bad request is one line on stderr and exit code 2, and no file is written."""

import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from costars.catalog import SEGMENTERS


def member(**changes):
    return {"a": changes}


BAD_SCENES = [
    (member(concept="char_c"), "no concept 'char_c'; did you mean 'char_b' or 'char_a'? known: char_a, char_b"),
    (member(concept="gone.safetensors"), "gone.safetensors: no such file"),
    (member(concept="damaged.safetensors"), "damaged.safetensors: not a readable .safetensors file"),
    (member(concept="builtin/ana"), "no concept 'builtin/ana'; known: char_a, char_b"),
    (member(concept="nameless.safetensors"), "does not say what it is; set cast.a.class_name, for example to woman"),
    (
        member(concept="large.safetensors"),
        "is 640 -> 640, but the model's is 48 -> 48; it was made for another base model",
    ),
    (member(wher="left"), "cast.a.wher: unknown key; did you mean 'where'?"),
    (member(where="midle"), "where: 'midle' is not left, right, a point, a box, nor a mask file"),
    (member(where="lefft"), "(lefft is not there); did you mean 'left'?"),
    ({"stepz": 4}, "stepz: unknown key; did you mean 'steps' or 'style'?"),
    ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
    ({"prompt": "{a} and {c}"}, "slot {c} but the cast has no such member"),
    ({"prompt": "{a} alone"}, "cast member 'b' has 0 slots"),
    ({"size": [64, 100]}, "height 100 does not fit this model; want a multiple of 8 px, e.g. 96"),
    ({"prompt": "{a} and {b} " + "so " * 600}, "at most 600 are read; shorten"),
    ({"model": "gone"}, "model 'gone': no such folder or file; want a diffusers folder"),
    ({"model": "builtin"}, "model 'builtin': no model_index.json there"),
]


@pytest.fixture
def odd_concepts(folder, library):
    """Concept files with something wrong, beside the scene."""
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 64)
    save_file(load_file(library / "char_a.safetensors"), folder / "nameless.safetensors")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(4, 640), f"{layer}.lora_B.weight": torch.ones(640, 4)}
    save_file(factors, folder / "large.safetensors", metadata={"costars": json.dumps({"class_name": "man"})})


@pytest.mark.usefixtures("odd_concepts")
@pytest.mark.parametrize(("changes", "said"), BAD_SCENES)
def test_a_bad_scene_is_one_line_and_nothing_is_written(refused, write, folder, changes, said):
    write(**changes)
    before = sorted(folder.iterdir())
    refused("render", "scene.yaml", "--out", "out", said=said)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["render", "gone.yaml"], "gone.yaml: cannot be read"),
        (["render", "left.png"], "left.png: holds no scene"),
        (["plan", "scene.yaml", "--set", "seed"], "--set seed: want key=value"),
        (["render", "scene.yaml", "--set", "cast.c.weight=1"], "the scene has no 'c'"),
        (["render", "scene.yaml", "--set", "method=nope"], "no method 'nope'; known: multi_lora, two_stage"),
        (["plan", "scene.yaml", "--set", "method=multi_lora"], "multi_lora has no layout to plan; use two_stage"),
        (["render", "scene.yaml", "--seed", "-3"], "seed: Input should be greater than or equal to 0"),
        (["render", "scene.yaml", "--max-rows", "1"], "max_rows 1"),
        (["render", "."], "holds no plan.json; make one with costars plan"),
    ],
)
def test_a_bad_request_is_one_line_and_nothing_is_written(refused, folder, words, said):
    before = sorted(folder.iterdir())
    refused(*words, "--out", "out", said=said)
    assert sorted(folder.iterdir()) == before


def test_an_out_that_is_a_file_is_refused_and_kept(refused, folder):
    refused("render", "scene.yaml", "--out", "left.png/deeper", said="left.png")
    refused("render", "scene.yaml", "--out", "scene.yaml", said="scene.yaml")
    assert yaml.safe_load((folder / "scene.yaml").read_text())["seed"] == 3


def test_settings_of_the_machine_that_cannot_be_are_one_line(refused, folder, monkeypatch):
    monkeypatch.setenv("COSTARS_DEVICE", "toaster")
    refused("render", "scene.yaml", "--out", "out", said="toaster")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "4"], "a plan has its seed; render the scene to use --seed or --retries"),
        (["--retries", "2"], "a plan has its seed"),
        (["--set", "steps=8"], "steps"),
        (["--set", "seed=8"], "seed"),
        (["--set", "size=[96, 96]"], "size"),
        (["--set", "scheduler=ddim"], "scheduler"),
    ],
)
def test_what_a_plan_has_fixed_cannot_be_changed(cli, refused, folder, words, said):
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    refused("render", "plan", "--out", "out", *words, said=said)
    assert not (folder / "out").exists()


def test_a_plan_without_one_of_its_masks_names_it(cli, refused, folder):
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    (folder / "plan" / "masks" / "b.png").unlink()
    refused("render", "plan", "--out", "out", said="b.png")
    assert not (folder / "out").exists()


def test_who_is_missing_is_said_and_the_layout_is_kept_to_see_why(refused, write, folder):
    write(b={"where": "empty.png"})
    Image.new("L", (64, 64), 0).save(folder / "empty.png")
    refused("render", "scene.yaml", "--out", "out", said="b's visible mask covers 0.00%")
    assert (folder / "out" / "layout.png").is_file() and not (folder / "out" / "picture.png").exists()


def test_three_members_on_a_device_with_room_for_two_rows_are_told_what_to_set(cli, refused, folder, monkeypatch):
    from diffusers import UNet2DConditionModel

    real = UNet2DConditionModel.forward

    def small(self, sample, *args, **options):
        if len(sample) > 2:
            raise torch.OutOfMemoryError("8 GiB are not enough")
        return real(self, sample, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", small)
    scene = yaml.safe_load((folder / "scene.yaml").read_text())
    scene["prompt"] = "{a}, {b} and {c} in the forest"
    scene["cast"]["c"] = {"concept": "char_a", "where": "middle.png"}
    for name, columns in (("left", (0, 20)), ("middle", (20, 44)), ("right", (44, 64))):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (columns[0], 0, columns[1], 64))
        mask.save(folder / f"{name}.png")
    (folder / "scene.yaml").write_text(yaml.safe_dump(scene))
    refused(
        "render", "scene.yaml", "--out", "out", said="out of memory, also with less of the model in it; set a smaller"
    )
    assert not (folder / "out").exists()
    assert cli("render", "scene.yaml", "--out", "out", "--max-rows", "2")[0] == 0  # as it was told


def test_six_members_where_five_figures_are_drawn_is_said_and_all_five_are_kept(
    refused, folder, make_region, monkeypatch
):
    five = [make_region("man", (i / 5, 0.1, (i + 1) / 5, 0.9), 0.9, i) for i in range(5)]
    monkeypatch.setitem(SEGMENTERS, "attention", lambda on: lambda layout, class_names: five)
    names = "abcdef"
    scene = yaml.safe_load((folder / "scene.yaml").read_text())
    scene["prompt"] = " and ".join(f"{{{name}}}" for name in names)
    scene["cast"] = {name: {"concept": "char_a"} for name in names}
    (folder / "scene.yaml").write_text(yaml.safe_dump(scene))
    refused("render", "scene.yaml", "--out", "out", said=" (man); it shows 5 man for a cast of 6")
    assert len(list((folder / "out" / "masks").iterdir())) == 5 and not (folder / "out" / "picture.png").exists()


def test_when_no_seed_shows_the_cast_the_last_one_says_why(refused, write, folder):
    write(b={"where": "left.png"})
    refused("plan", "scene.yaml", "--out", "out", "--retries", "1", said="a and b would share one figure")


@pytest.mark.usefixtures("folder")
def test_a_concept_that_is_not_there_cannot_be_shown(refused):
    refused("concepts", "show", "char_x", said="did you mean 'char_b' or 'char_a'?")


def test_a_plan_is_not_rendered_into_its_own_folder(refused, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    refused("render", tmp_path, "--out", tmp_path, said="holds a plan of an earlier run, which would be lost")
    assert (tmp_path / "plan.json").read_text() == "{}"


def test_stopping_is_one_line(cli, folder, monkeypatch):
    from costars.studio import Studio

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Studio, "render_steps", interrupted)
    code, out, err = cli("render", "scene.yaml", "--out", "out")
    assert (code, out) == (130, "") and err.strip().splitlines()[-1] == "costars: stopped"
    assert not (folder / "out").exists()


def test_stopping_while_the_libraries_are_loaded_is_one_line(monkeypatch, capsys):
    import builtins

    from costars.__main__ import main

    plain = builtins.__import__

    def interrupted(name, *arguments, **options):
        if name == "costars.cli.main":
            raise KeyboardInterrupt
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130 and capsys.readouterr().err == "costars: stopped\n"
