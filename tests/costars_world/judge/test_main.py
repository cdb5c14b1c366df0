"""python -m costars_world.judge."""

import json
import random

import pytest
import torch
from PIL import Image

from costars_world.judge.__main__ import main
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import draw_portraits, write_portraits
from costars_world.render.world import draw_scene, sample_picture

CPU = torch.device("cpu")


def test_command_prints_one_entry_per_image(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("costars_world.judge.__main__.NUM_DISTRACTORS", 10)
    identity = identity_from_seed(77, "robot")
    pictures = draw_portraits(identity, 6, 77)
    write_portraits(pictures[:4], identity, tmp_path / "references")
    for i, picture in enumerate(pictures[4:]):
        picture.image.save(tmp_path / f"{i}.png")
    sample_picture(5, cast=[identity_from_seed(78, "dog")]).image.save(tmp_path / "dog.png")
    names = ["0.png", "1.png", "dog.png"]
    main([*(str(tmp_path / n) for n in names), "--references", str(tmp_path / "references")])
    entries = json.loads(capsys.readouterr().out)
    assert [e["picture"] for e in entries] == [str(tmp_path / n) for n in names]
    assert [e["class_name"] for e in entries] == ["robot", "robot", "dog"]
    assert [e["rank"] for e in entries[:2]] == [1, 1]
    assert entries[0]["attributes"] == dict(identity.attributes)
    assert entries[0]["similarity"] > entries[2]["similarity"]
    assert entries[0]["others"] == 10
    Image.fromarray(pictures[4].figures[0].visible_mask).save(tmp_path / "m.png")
    arguments = ["--references", str(tmp_path / "references"), "--mask", str(tmp_path / "m.png")]
    main([str(tmp_path / "0.png"), *arguments])
    assert json.loads(capsys.readouterr().out)[0]["class_name"] == "robot"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": "missing.png"}, "missing.png: not a readable image"),
        ({"references": "nowhere"}, "nowhere: no .png images"),
        ({"mask": "missing.png"}, "missing.png: not a readable image"),
        ({"mask": "small.png"}, "use the same size"),
        ({"picture": "empty.png"}, "no figure found"),
    ],
)
def test_invalid_input_is_one_line_and_exit_code_2(tmp_path, capsys, change, message):
    identity = identity_from_seed(1, "cat")
    write_portraits(draw_portraits(identity, 2, 1), identity, tmp_path / "references")
    Image.new("L", (32, 32), 255).save(tmp_path / "small.png")
    draw_scene(random.Random(0), [], "beach", [], [])[0].save(tmp_path / "empty.png")
    given = {"picture": "references/00.png", "references": "references"} | change
    mask = ["--mask", str(tmp_path / given["mask"])] if "mask" in given else []
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / given["picture"]), "--references", str(tmp_path / given["references"]), *mask])
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1
