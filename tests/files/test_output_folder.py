"""Output folders are written completely or not at all, and foreign files are never replaced."""

import json
import os

import pytest

from costars.errors import SceneError
from costars.files.output_folder import (
    COMMITTED,
    MANIFEST,
    atomic_folder,
    check_output_folder,
    check_writable,
    list_previous_files,
    lock_results,
)


def write_record(folder, name="plan.json", regions=("a",)):
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for region in regions:
        (folder / "masks" / f"{region}.png").touch()
    (folder / name).write_text(json.dumps({"regions": [{"name": region} for region in regions]}))


def list_names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_folder_is_written_completely_or_not_at_all(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(ArithmeticError), atomic_folder(tmp_path / "out") as folder:
        (folder / "new.txt").write_text("new")
        raise ArithmeticError
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old.txt"]
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new.txt").write_text("new")
    assert {p.name for p in tmp_path.rglob("*")} == {"out", "old.txt", "deep", "new.txt"}


def test_failed_block_leaves_no_new_folder(tmp_path):
    with pytest.raises(ArithmeticError), atomic_folder(tmp_path / "out"):
        raise ArithmeticError
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_earlier_run_are_removed(tmp_path):
    write_record(tmp_path, regions=("a", "b"))
    (tmp_path / "notes.txt").touch()
    with atomic_folder(tmp_path) as folder:
        write_record(folder, regions=("b",))
    assert list_names(tmp_path) == {"plan.json", "masks/b.png", "notes.txt"}


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"regions": 3}', '{"regions": [{}]}'])
def test_folder_without_a_readable_record_has_no_previous_files(tmp_path, record):
    (tmp_path / "picture.png").touch()
    (tmp_path / "result.json").write_text(record)
    assert list_previous_files(tmp_path) == []


def test_mask_names_cannot_lead_out_of_the_folder(tmp_path):
    (tmp_path / "a.png").touch()
    write_record(tmp_path / "out", regions=())
    (tmp_path / "out" / "plan.json").write_text(json.dumps({"regions": [{"name": "../../a"}]}))
    assert list_previous_files(tmp_path / "out") == [tmp_path / "out" / "plan.json"]


def test_foreign_file_is_found_before_anything_is_drawn(tmp_path):
    (tmp_path / "picture.png").touch()
    with pytest.raises(SceneError, match=r"contains picture\.png, which costars did not write"):
        check_output_folder(tmp_path, "picture")


def test_plan_does_not_replace_a_picture(tmp_path):
    write_record(tmp_path, "result.json")
    check_output_folder(tmp_path, "picture")
    with pytest.raises(SceneError, match="contains a picture of an earlier run; choose another folder"):
        check_output_folder(tmp_path, "plan")


def test_path_below_a_file_is_not_writable(tmp_path):
    check_writable(tmp_path / "new" / "deep", "--out")
    (tmp_path / "file").touch()
    with pytest.raises(SceneError, match=r"--save .*deep: .*file is not a writable folder; choose another"):
        check_writable(tmp_path / "file" / "deep", "--save")


@pytest.mark.parametrize(
    "name", ["masks", "masks/a.png", "picture.png", "result.json", "layout.safetensors", "missing", COMMITTED]
)
@pytest.mark.parametrize("is_dangling", [False, True])
def test_link_in_the_folder_is_refused_and_its_target_is_kept(tmp_path, name, is_dangling):
    """A record can name any mask, so masks/ must not lead elsewhere."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    (mine / "a.png").write_bytes(b"mine")
    write_record(out, "result.json")
    if (out / name).is_dir():
        (out / name / "a.png").unlink()
        (out / name).rmdir()
    (out / name).unlink(missing_ok=True)
    target = mine if name in ("masks", "missing", COMMITTED) else mine / "a.png"
    (out / name).symlink_to(tmp_path / "gone" if is_dangling else target)
    with pytest.raises(SceneError, match=f"--out .*out: its {name} is a link; remove it, or choose another folder"):
        check_output_folder(out, "picture")
    with pytest.raises(SceneError, match="is a link"), atomic_folder(out) as folder:
        write_record(folder, "result.json", regions=())
    assert (mine / "a.png").read_bytes() == b"mine" and len(list(mine.iterdir())) == 1
    assert not (tmp_path / "gone").exists()


def test_output_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "out") as folder:
        write_record(folder)
    assert list_names(tmp_path / "disk") == {"plan.json", "masks/a.png"}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_name_that_is_not_a_file_is_refused(tmp_path, kind):
    if kind == "pipe":
        os.mkfifo(tmp_path / "result.json")
    else:
        (tmp_path / "result.json").mkdir()
    with pytest.raises(SceneError, match=r"its result\.json is not a file; remove it"):
        check_output_folder(tmp_path, "picture")


@pytest.mark.parametrize("names", [["../a.png"], ["/a.png"], ["masks/../../a.png"], ["masks/deep/a.png"], 3, None])
def test_crafted_rest_of_a_run_moves_nothing_out_of_the_folder(tmp_path, names):
    committed = tmp_path / "out" / COMMITTED
    (committed / "masks").mkdir(parents=True)
    (committed / "masks" / "a.png").write_bytes(b"theirs")
    if names is not None:
        (committed / MANIFEST).write_text(json.dumps(names))
    with (
        pytest.raises(SceneError, match="the rest of an interrupted run is damaged; remove it"),
        lock_results(tmp_path / "out"),
    ):
        pass
    assert list_names(tmp_path / "out") == {f"{COMMITTED}/masks/a.png"} | (
        set() if names is None else {f"{COMMITTED}/{MANIFEST}"}
    )


def test_rest_of_a_run_with_a_linked_folder_is_refused(tmp_path):
    committed, mine = tmp_path / "out" / COMMITTED, tmp_path / "mine"
    mine.mkdir()
    (mine / "a.png").write_bytes(b"mine")
    committed.mkdir(parents=True)
    (committed / "masks").symlink_to(mine)
    (committed / MANIFEST).write_text(json.dumps(["masks/a.png"]))
    with pytest.raises(SceneError, match="is a link"), lock_results(tmp_path / "out"):
        pass
    assert (mine / "a.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "record",
    ['{"regions": [{"name": 3}]}', '{"regions": [{"name": "a\\u0000"}]}', "[" * 5_000, '{"regions": {"a": 1}}'],
)
def test_crafted_record_is_no_record(tmp_path, record):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").touch()
    (tmp_path / "result.json").write_text(record)
    assert list_previous_files(tmp_path) in ([], [tmp_path / "result.json"])
