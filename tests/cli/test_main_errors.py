"""An invalid request is one line on stderr and exit code 2, and no file is written."""

import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file


def member(**changes):
    return {"a": changes}


BAD_SCENES = [
    (member(concept="char_c"), "no concept 'char_c'; did you mean 'char_b' or 'char_a'? known: char_a, char_b"),
    (member(concept="gone.safetensors"), "/home/gone.safetensors"),
    (
        {"a": {"concept": "nobody"}, "b": {"concept": "noone"}},
        "cast.a: no concept 'nobody'; known: char_a, char_b; or give the path of a .safetensors file; cast.b: no",
    ),
    (member(concept="damaged.safetensors"), "damaged.safetensors: not a readable .safetensors file"),
    (member(concept="builtin/ana"), "no concept 'builtin/ana'; known: char_a, char_b"),
    (member(concept="nameless.safetensors"), "does not say what it is; set cast.a.class_name, for example to woman"),
    (
        member(concept="large.safetensors"),
        "is 640 -> 640, the model's is 48 -> 48; it was made for another base model",
    ),
    (member(wher="left"), "cast.a.wher: unknown key; did you mean 'where'?"),
    (member(where="midle"), "where: 'midle' is not left, right, a point, a box or a mask file"),
    (member(where="lefft"), "lefft: not found); did you mean 'left'?"),
    ({"stepz": 4}, "stepz: unknown key; did you mean 'steps' or 'style'?"),
    ({"steps": 0}, "steps: want at least 1"),
    ({"prompt": "{a} and {c}"}, "slot {c} but the cast has no such member"),
    ({"prompt": "{a} alone"}, "cast member 'b' has 0 slots"),
    ({"size": [64, 100]}, "height 100 does not fit this model; want a multiple of 8 px, e.g. 96"),
    ({"prompt": "{a} and {b} " + "so " * 600}, "the limit is 600; shorten"),
    ({"model": "gone"}, "gone': no such folder or file; want a diffusers folder"),
    ({"model": "builtin"}, "model 'builtin': no model_index.json there"),
]


@pytest.fixture
def odd_concepts(folder, library):
    """Invalid concept files beside the scene."""
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 64)
    save_file(load_file(library / "char_a.safetensors"), folder / "nameless.safetensors")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(4, 640), f"{layer}.lora_B.weight": torch.ones(640, 4)}
    save_file(factors, folder / "large.safetensors", metadata={"costars": json.dumps({"class_name": "man"})})


@pytest.mark.usefixtures("odd_concepts")
@pytest.mark.parametrize(("changes", "message"), BAD_SCENES)
def test_invalid_scene_is_reported_in_one_line_and_writes_nothing(expect_error, write, folder, changes, message):
    write(**changes)
    before = sorted(folder.iterdir())
    expect_error("render", "scene.yaml", "--out", "out", message=message)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["render", "gone.yaml"], "gone.yaml: no such file or folder (/"),
        (["render", "left.png"], "left.png: contains no scene"),
        (["plan", "scene.yaml", "--set", "seed"], "--set seed: want key=value"),
        (["render", "scene.yaml", "--set", "cast.c.weight=1"], "the scene has no 'c'"),
        (["render", "scene.yaml", "--set", "method=nope"], "no method 'nope'; known: multi_lora, two_stage"),
        (["plan", "scene.yaml", "--set", "method=multi_lora"], "multi_lora has no layout to plan; use two_stage"),
        (["render", "scene.yaml", "--seed", "-3"], "seed: want at least 0 (got -3)"),
        (["render", "scene.yaml", "--max-rows", "1"], "max_rows 1"),
        (["render", "."], "has no plan.json; make one with costars plan"),
    ],
)
def test_invalid_request_is_reported_in_one_line_and_writes_nothing(expect_error, folder, words, message):
    before = sorted(folder.iterdir())
    expect_error(*words, "--out", "out", message=message)
    assert sorted(folder.iterdir()) == before


def test_out_that_is_a_file_is_rejected_and_kept(expect_error, folder):
    expect_error("render", "scene.yaml", "--out", "left.png/deeper", message="left.png")
    expect_error("render", "scene.yaml", "--out", "scene.yaml", message="scene.yaml")
    assert yaml.safe_load((folder / "scene.yaml").read_text())["seed"] == 3


def test_invalid_machine_setting_is_reported_in_one_line(expect_error, folder, monkeypatch):
    monkeypatch.setenv("COSTARS_DEVICE", "toaster")
    expect_error("render", "scene.yaml", "--out", "out", message="toaster")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "4"], "a plan has its seed; render the scene to use --seed, --count or --retries"),
        (["--retries", "2"], "a plan has its seed"),
        (["--set", "steps=8"], "steps"),
        (["--set", "seed=8"], "seed"),
        (["--set", "size=[96, 96]"], "size"),
        (["--set", "scheduler=ddim"], "scheduler"),
    ],
)
def test_settings_fixed_by_the_plan_cannot_be_changed(cli, expect_error, folder, words, message):
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    expect_error("render", "plan", "--out", "out", *words, message=message)
    assert not (folder / "out").exists()


def test_missing_mask_of_a_plan_is_named(cli, expect_error, folder):
    assert cli("plan", "scene.yaml", "--out", "plan")[0] == 0
    (folder / "plan" / "masks" / "b.png").unlink()
    expect_error("render", "plan", "--out", "out", message="b.png")
    assert not (folder / "out").exists()


def test_missing_member_is_named_and_the_layout_is_kept(expect_error, write, folder):
    write(b={"where": "empty.png"})
    Image.new("L", (64, 64), 0).save(folder / "empty.png")
    expect_error("render", "scene.yaml", "--out", "out", message="b's visible mask covers 0.00%")
    assert (folder / "out" / "layout.png").is_file() and not (folder / "out" / "picture.png").exists()


def test_out_of_memory_with_three_members_is_drawn_with_fewer_rows(cli, folder, monkeypatch):
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
    code, _, err = cli("render", "scene.yaml", "--out", "out")
    assert code == 0 and "memory ran out: at most 2 rows per UNet call from now on" in err


def test_too_few_figures_are_counted_and_their_masks_are_kept(expect_error, folder, make_region, monkeypatch):
    five = [make_region("man", (i / 5, 0.1, (i + 1) / 5, 0.9), 0.9, i) for i in range(5)]
    monkeypatch.setattr(
        "costars.segment.cross_attention.open_segmenter", lambda machine: lambda layout, class_names: five
    )
    names = "abcdef"
    scene = yaml.safe_load((folder / "scene.yaml").read_text())
    scene["prompt"] = " and ".join(f"{{{name}}}" for name in names)
    scene["cast"] = {name: {"concept": "char_a"} for name in names}
    (folder / "scene.yaml").write_text(yaml.safe_dump(scene))
    expect_error("render", "scene.yaml", "--out", "out", message=" (man); it shows 5 man for a cast of 6")
    assert len(list((folder / "out" / "masks").iterdir())) == 5 and not (folder / "out" / "picture.png").exists()


def test_error_of_the_last_seed_is_reported_if_no_seed_shows_the_cast(expect_error, write, folder):
    write(b={"where": "left.png"})
    expect_error("plan", "scene.yaml", "--out", "out", "--retries", "1", message="a and b would share one figure")


@pytest.mark.usefixtures("folder")
def test_showing_an_unknown_concept_suggests_similar_names(expect_error):
    expect_error("concepts", "show", "char_x", message="did you mean 'char_b' or 'char_a'?")


def test_plan_is_not_rendered_into_its_own_folder(expect_error, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    expect_error("render", tmp_path, "--out", tmp_path, message="contains a plan of an earlier run")
    assert (tmp_path / "plan.json").read_text() == "{}"


def test_interrupt_is_reported_in_one_line(cli, folder, monkeypatch):
    from costars.studio import Studio

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Studio, "render_steps", interrupted)
    code, out, err = cli("render", "scene.yaml", "--out", "out")
    assert (code, out) == (130, "") and err.strip().splitlines()[-1] == "costars: stopped"
    assert not (folder / "out").exists()


def test_interrupt_during_imports_is_reported_in_one_line(monkeypatch, capsys):
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


@pytest.mark.parametrize(
    "words",
    [
        ("render", "scene.yaml", "--out", ""),
        ("plan", "scene.yaml", "--out="),
        ("render", "", "--out", "x"),
        ("train", "lora", "--images", ""),
        ("train", "lora", "--work", "", "--images", "x"),
        ("concepts", "export", "char_a", "--format", "kohya", "--out", ""),
        ("concepts", "merge", "char_a", "--model", "x", "--captions", "x", "--out", ""),
    ],
)
def test_empty_path_is_not_the_working_folder(expect_error, folder, words):
    before = sorted(folder.iterdir())
    expect_error(*words, message="is empty; give a path")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["x[/y]", "[bold] a"])
def test_any_folder_name_is_printed_as_it_is(cli, folder, name):
    code, out, err = cli("plan", "scene.yaml", "--out", name, "--set", "steps=1")
    assert (code, out) == (0, f"{name}/plan.json\n") and f"costars render {name}" in err.replace("\n", "")
    assert (folder / name / "plan.json").is_file()


def test_error_of_any_text_is_one_short_line(expect_error, cli, folder):
    expect_error("render", "a\nb\x1b[2J.yaml", "--out", "x", message="a b\\x1b[2J")
    code, _, err = cli("render", "scene.yaml", "--out", "x", "--set", f"seed={'x' * 50_000}")
    assert code == 2 and err.count("\n") == 1 and len(err) < 2_100


def test_full_disk_is_named_with_the_folder(expect_error, folder, full_disk, monkeypatch):
    monkeypatch.setattr("costars.records.plan.write_masks", full_disk)
    expect_error(
        "plan", "scene.yaml", "--out", "out", "--set", "steps=1", message="out: No space left on device; check"
    )
    assert not (folder / "out").exists()


def test_export_on_a_full_disk_leaves_the_earlier_one(cli, expect_error, folder, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    words = ("concepts", "export", "char_a", "--format", "kohya", "--out", "a.safetensors")
    assert cli(*words)[0] == 0
    before = (folder / "a.safetensors").read_bytes()
    monkeypatch.setattr("costars.files.tensors.save_file", full)
    expect_error(*words, "--replace", message="a.safetensors: No space left on device; check the disk and the folder")
    assert (folder / "a.safetensors").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_second_training_of_one_name_is_refused_while_the_first_runs(expect_error, images, work):
    from costars.files.temporary import locked_folder

    work.mkdir(parents=True)
    words = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
    with locked_folder(work):
        expect_error(*words, message=f"--work {work}: another training is using it; wait for it, or choose another")


def test_concept_that_appears_during_a_training_is_kept(cli, images, library, work, monkeypatch):
    from costars.train import session

    write = session.write_concepts

    def late(*arguments, **options):
        (library / "mia.safetensors").write_bytes(b"another run's")
        write(*arguments, **options)

    monkeypatch.setattr(session, "write_concepts", late)
    words = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
    short = ("steps=1", "rank=2", "alpha=2", "gradient_checkpointing=false", "max_aspect_ratio=1")
    code, _, err = cli(*words, *(word for setting in short for word in ("--set", setting)))
    assert code == 2 and "mia.safetensors: File exists; the checkpoint" in err and "--resume --replace" in err
    assert (library / "mia.safetensors").read_bytes() == b"another run's"
    assert (work / "checkpoint.safetensors").is_file()
