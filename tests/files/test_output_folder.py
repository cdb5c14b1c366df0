"""Output folders are written completely or not at all, and foreign files are never replaced."""

import json

import pytest

from costars.errors import SceneError
from costars.files.output_folder import atomic_folder, check_output_folder, check_writable, list_previous_files


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
