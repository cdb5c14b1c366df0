"""A folder belongs to one run at a time, and leaves nothing behind that the run did not write."""

import pytest

from costars.errors import SceneError
from costars.files.folder_claim import check_no_earlier_run, claim_folder
from costars.files.output_folder import atomic_folder, lock_results


def test_folder_is_there_within_the_block_and_removed_if_it_stays_empty(tmp_path):
    with pytest.raises(ArithmeticError), claim_folder(tmp_path / "new" / "deep"):
        assert (tmp_path / "new" / "deep").is_dir()
        raise ArithmeticError
    assert list(tmp_path.iterdir()) == []
    with claim_folder(tmp_path / "new" / "deep"):
        (tmp_path / "new" / "deep" / "picture.png").touch()
    assert (tmp_path / "new" / "deep" / "picture.png").is_file()


def test_folder_that_was_there_stays(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ArithmeticError), claim_folder(tmp_path / "old"):
        raise ArithmeticError
    assert (tmp_path / "old").is_dir()


def test_only_one_run_has_the_folder(tmp_path):
    with claim_folder(tmp_path / "out"):
        with (
            pytest.raises(SceneError, match=r"--out .*out: another run is writing into it"),
            claim_folder(tmp_path / "out"),
        ):
            pass
        assert (tmp_path / "out").is_dir()
    with claim_folder(tmp_path / "out"):
        pass


@pytest.mark.timeout(20)  # a lock that waits for its own process waits for ever
def test_the_run_that_has_the_folder_writes_and_reads_there(tmp_path):
    with claim_folder(tmp_path / "out"):
        for text in ("one", "two"):
            with atomic_folder(tmp_path / "out") as folder:
                (folder / "result.json").write_text(f'{{"regions": [], "text": "{text}"}}')
            with lock_results(tmp_path / "out"):
                assert text in (tmp_path / "out" / "result.json").read_text()
        with pytest.raises(SceneError, match="another run"), claim_folder(tmp_path / "out"):
            pass


@pytest.mark.parametrize(("kind", "record"), [("plan", "plan.json"), ("picture", "result.json")])
def test_result_of_an_earlier_run_is_found(tmp_path, kind, record):
    check_no_earlier_run(tmp_path, kind, replace=False)
    (tmp_path / record).write_text('{"regions": []}')
    with pytest.raises(SceneError, match=f"contains a {kind} of an earlier run; choose another folder, or use --repl"):
        check_no_earlier_run(tmp_path, kind, replace=False)
    check_no_earlier_run(tmp_path, kind, replace=True)
