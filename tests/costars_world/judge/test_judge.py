"""The judge that ships: right on pictures it has not seen, and honest on the command line."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from costars.errors import ModelError, RegionError
from costars_world.judge.__main__ import main
from costars_world.judge.gallery import Gallery
from costars_world.judge.judge import COLUMNS, JUDGE_WEIGHTS, SCORES, crop, load_judge
from costars_world.render.identity import Identity, identity_from_seed
from costars_world.render.portraits import portraits, write
from costars_world.render.world import draw, sample_picture
from costars_world.training.judge import measure, shows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge():
    return load_judge(JUDGE_WEIGHTS, CPU)


def test_it_is_right_on_pictures_it_has_not_seen(judge, monkeypatch):
    monkeypatch.setattr("costars_world.training.judge.OTHERS", 20)
    held_out = measure(judge, 40, first_seed=7000)
    assert held_out["class_right"] >= 0.95
    assert held_out["attribute_right"] >= 0.9
    assert held_out["found_first"] >= 0.9


def test_one_identity_is_more_like_itself_than_like_another(judge):
    def figures(seed):
        pictures = portraits(identity_from_seed(seed, "woman"), 3, seed)
        return judge.embed([(p.image, p.figures[0].visible_mask.astype(np.float32)) for p in pictures])

    one, other = figures(123_456), figures(654_321)
    assert torch.allclose(one.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (one @ one.T).min() > (one @ other.T).max()


def test_a_crop_does_not_depend_on_where_the_figure_stands_nor_on_what_is_behind_it():
    picture = sample_picture(3, count=1)
    mask = picture.figures[0].visible_mask.astype(np.float32)
    image = np.asarray(picture.image)
    wide, moved = np.full((128, 200, 3), 40, np.uint8), np.zeros((128, 200), np.float32)
    wide[:, 60:188], moved[:, 60:188] = np.where(mask[..., None] > 0, image, 200), mask
    assert np.array_equal(crop(picture.image, mask)[..., 3], crop(Image.fromarray(wide), moved)[..., 3])
    seen, again = crop(picture.image, mask).astype(int), crop(Image.fromarray(wide), moved).astype(int)
    inside = seen[..., 3] == 255
    assert np.array_equal(seen[inside], again[inside])


def test_a_figure_at_the_edge_is_cropped_on_grey():
    mask = np.zeros((128, 128), np.float32)
    mask[20:120, 0:20] = 1
    cut = crop(Image.new("RGB", (128, 128), (10, 200, 30)), mask)
    assert cut.shape == (64, 64, 4)
    assert tuple(cut[0, 0]) == (128, 128, 128, 0)
    assert tuple(cut[32, 32]) == (10, 200, 30, 255)


def test_an_empty_mask_is_refused():
    with pytest.raises(RegionError, match="empty"):
        crop(Image.new("RGB", (128, 128)), np.zeros((128, 128), np.float32))


def test_the_columns_cover_every_score_once():
    taken = [i for columns in COLUMNS.values() for i in range(columns.start, columns.stop)]
    assert taken == list(range(5, SCORES))


def test_the_line_up_holds_distinct_others_of_the_same_class(judge):
    gallery = Gallery(judge, others=5)
    who, _ = gallery.line_up("cat")[2]
    assert len(gallery.strangers(who)) == 5
    assert len(Gallery(judge, others=100_000).line_up("cat")) == 5 * 3 * 4
    reference = gallery.reference(who)
    assert gallery.rank(reference, reference, who) == 1
    assert gallery.rank(-reference, reference, who) == 6


def test_a_bald_head_without_a_beard_shows_no_colour_of_hair():
    bald = Identity("man", {"hair_style": "bald", "beard": "none", "hair_colour": "red"})
    assert not shows(bald, "hair_colour")
    assert shows(bald, "hair_style")
    assert shows(Identity("man", {**bald.attributes, "beard": "moustache"}), "hair_colour")
    assert shows(Identity("cat", {"fur": "grey"}), "fur")


def test_the_command_prints_one_entry_for_each_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("costars_world.judge.__main__.OTHERS", 10)
    who = identity_from_seed(77, "robot")
    pictures = portraits(who, 6, 77)
    write(pictures[:4], who, tmp_path / "references")
    for i, picture in enumerate(pictures[4:]):
        picture.image.save(tmp_path / f"{i}.png")
    sample_picture(5, cast=[identity_from_seed(78, "dog")]).image.save(tmp_path / "dog.png")
    names = ["0.png", "1.png", "dog.png"]
    main([*(str(tmp_path / n) for n in names), "--references", str(tmp_path / "references")])
    entries = json.loads(capsys.readouterr().out)
    assert [e["picture"] for e in entries] == [str(tmp_path / n) for n in names]
    assert [e["class_name"] for e in entries] == ["robot", "robot", "dog"]
    assert [e["rank"] for e in entries[:2]] == [1, 1]
    assert entries[0]["attributes"] == dict(who.attributes)
    assert entries[0]["similarity"] > entries[2]["similarity"]
    assert entries[0]["others"] == 10
    Image.fromarray(pictures[4].figures[0].visible_mask).save(tmp_path / "m.png")
    arguments = ["--references", str(tmp_path / "references"), "--mask", str(tmp_path / "m.png")]
    main([str(tmp_path / "0.png"), *arguments])
    assert json.loads(capsys.readouterr().out)[0]["class_name"] == "robot"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"picture": "missing.png"}, "missing.png: cannot be read as a picture"),
        ({"references": "nowhere"}, "nowhere: holds no .png pictures"),
        ({"mask": "missing.png"}, "missing.png: cannot be read as a picture"),
        ({"mask": "small.png"}, "give a mask of the same size"),
        ({"picture": "empty.png"}, "no figure is found in it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, change, said):
    who = identity_from_seed(1, "cat")
    write(portraits(who, 2, 1), who, tmp_path / "references")
    Image.new("L", (32, 32), 255).save(tmp_path / "small.png")
    draw(random.Random(0), [], "beach", [], [])[0].save(tmp_path / "empty.png")
    given = {"picture": "references/00.png", "references": "references"} | change
    mask = ["--mask", str(tmp_path / given["mask"])] if "mask" in given else []
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / given["picture"]), "--references", str(tmp_path / given["references"]), *mask])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1


def test_a_damaged_judge_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="judge"):
        load_judge(path, CPU)
