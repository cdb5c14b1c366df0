"""Tables of the documentation from measured figures."""

import json

from PIL import Image

from costars_world.benchmarks import publish
from costars_world.benchmarks.provenance import DRAWN

VALUE = {"n": 8, "mean": 0.594, "low": 0.455, "high": 0.7049}


def make_row(**changes):
    measures = dict.fromkeys(("similarity", "attributes", "first"), VALUE) | {"iou": None, "order_kept": None}
    return {"group": "all pairs", "variant": "0.10", "tried": 9, "layouts": 7, "scenes": 8, **measures, **changes}


def write(folder, name, facts):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"command": f"run {name}", **facts}))


def test_numbers_have_their_intervals_and_counts():
    assert publish.format_interval(VALUE) == "0.59 (0.46 to 0.70)" and publish.format_interval(None) == ""
    assert publish.format_count({"n": 18, "mean": 0.9444}) == "17 of 18" and publish.format_count(None) == ""
    share = {"right": 66, "n": 68, "mean": 66 / 68, "low": 0.899, "high": 0.992}
    assert publish.format_share(share) == "66 of 68, 97 % (90 to 99)"


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    write(tmp_path, "start", {"rows": [make_row(order_kept={"n": 4, "mean": 0.75, "low": 0.5, "high": 1.0})]})
    page = "before\n<!-- table: start -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    written = publish.write_tables(page, tmp_path)
    assert written.splitlines() == [
        "before",
        "<!-- table: start -->",
        "| start | layouts | scenes | similarity | attributes right | found first of 101 | layout IoU | order kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 0.10 | 7 | 8 of 9 | 0.59 (0.46 to 0.70) | 0.59 (0.46 to 0.70) | 0.59 (0.46 to 0.70) |  | 3 of 4 |",
        "<!-- end -->",
        "after <!-- end -->",
    ]
    assert publish.write_tables(written, tmp_path) == written


def test_figures_and_pictures_of_a_run_are_copied(tmp_path, monkeypatch):
    docs, out = tmp_path / "docs", tmp_path / "out"
    (docs / "images").mkdir(parents=True)
    (docs / "results.md").write_text("<!-- table: start -->\n<!-- end -->\n")
    monkeypatch.setattr(publish, "DOCS", docs)
    write(out, "start", {"rows": [make_row()]})
    Image.new("RGB", (8, 8)).save(out / "start.png")
    publish.main([str(out)])
    assert (docs / "results" / "start.json").read_bytes() == (out / "start.json").read_bytes()
    assert "| 0.10 | 7 | 8 of 9 |" in (docs / "results.md").read_text()
    notes = json.loads((docs / "images" / DRAWN).read_text())
    assert notes["start.png"]["command"] == "run start" and notes["start.png"]["weights"].keys() == {"builtin", "judge"}


def test_shares_of_the_base_model_have_a_column_each(tmp_path):
    share = {"stated": 4, "right": 3, "n": 3, "mean": 1.0, "low": 0.4385, "high": 1.0}
    shares = {"two figures": {"classes": share, "side": share}, "three to five": {"classes": share}}
    pairs, groups = publish.base_lines({"shares": shares})
    assert pairs["left, right"] == "3 of 3, 100 % (44 to 100)" and groups["left, right"] == pairs["depth"] == ""
