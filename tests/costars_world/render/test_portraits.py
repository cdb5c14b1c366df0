"""Portraits show one identity and are written with masks, captions and truth."""

import json

import numpy as np
import pytest
from PIL import Image

from costars.train.data.images import read_image_folder
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import FIGURE_COUNTS, MAX_HIDDEN_SHARE, draw_portraits, main


def run_command(out, *changes: str) -> None:
    main(["--identity-seed", "7", "--class", "woman", "--count", "3", "--out", str(out), *changes])


def test_pictures_masks_captions_and_truth_are_written(tmp_path, capsys):
    run_command(tmp_path / "new")
    truth = json.loads((tmp_path / "new" / "truth.json").read_text())
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "truth.json")
    assert truth["class_name"] == "woman"
    assert truth["attributes"] == dict(identity_from_seed(7, "woman").attributes)
    assert [p["file"] for p in truth["pictures"]] == ["00.png", "01.png", "02.png"]
    for entry in truth["pictures"]:
        assert entry["caption"].count("woman") == entry["caption"].count("a woman") == 1
        assert entry["caption"].endswith(PLACES[entry["place"]].phrase)
        with Image.open(tmp_path / "new" / entry["file"]) as image:
            assert image.size == (128, 128)
        with Image.open(tmp_path / "new" / entry["file"].replace(".png", ".mask.png")) as mask:
            assert 0.05 < np.asarray(mask).mean() < 0.9
    alone = [p for p, figures in zip(truth["pictures"], FIGURE_COUNTS, strict=False) if figures == 1]
    assert alone and all(p["caption"] == f"a woman {PLACES[p['place']].phrase}" for p in alone)
    read = read_image_folder(tmp_path / "new").examples
    assert [(e.name, e.caption) for e in read] == [(p["file"], p["caption"]) for p in truth["pictures"]]
    assert all(e.mask is not None for e in read)


def test_output_is_reproducible(tmp_path):
    for name in ("one", "two"):
        run_command(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(files) == 8
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_every_place_is_used_before_any_repeats():
    places = [p.place for p in draw_portraits(identity_from_seed(0, "dog"), 2 * len(PLACES) + 1)]
    assert set(places[: len(PLACES)]) == set(PLACES) == set(places[len(PLACES) : 2 * len(PLACES)])


def test_all_pictures_show_the_identity():
    who = identity_from_seed(4, "man")
    assert all([f.identity for f in p.figures] == [who] for p in draw_portraits(who, 5))


def test_other_figures_have_other_classes_and_hide_little():
    who = identity_from_seed(4, "man")
    pictures = draw_portraits(who, 12, figure_counts=FIGURE_COUNTS)
    assert [len(p.figures) for p in pictures] == [*FIGURE_COUNTS, *FIGURE_COUNTS]
    for picture in pictures:
        figure = picture.find_figure(who)
        classes = [f.identity.class_name for f in picture.figures]
        assert len(set(classes)) == len(classes) and picture.caption.count("a man") == 1
        assert figure.visible_mask.sum() >= (1 - MAX_HIDDEN_SHARE) * figure.full_mask.sum()
    assert len({[f.identity for f in p.figures].index(who) for p in pictures}) > 1  # not always named first


@pytest.mark.parametrize("wrong", [("--count", "0"), ("--class", "cow"), ("--identity-seed", "x")])
def test_invalid_options_write_nothing(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as exit_info:
        run_command(tmp_path / "new", *wrong)
    assert exit_info.value.code == 2
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
