"""Concepts are found by name in several folders, or by path."""

import os
import shutil

import pytest

from costars.concepts import cache
from costars.concepts.library import Library
from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.files.temporary import temporary_folder


@pytest.fixture
def library(golden, tmp_path) -> Library:
    """Two shipped concepts and one of the user's."""
    for folder, name, source in (("builtin", "ana", "a"), ("builtin", "bo", "b"), ("library", "mia", "a")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(golden / f"char_{source}.safetensors", tmp_path / folder / f"{name}.safetensors")
    return Library(tmp_path / "builtin", tmp_path / "library")


def test_files_are_listed_by_the_names_that_scenes_use(library):
    assert [name for name, _ in library.files()] == ["builtin/ana", "builtin/bo", "mia"]


def test_missing_folders_are_empty(tmp_path):
    assert list(Library(tmp_path / "none", tmp_path / "neither").files()) == []


def test_find_by_name(library, tmp_path):
    assert library.find("builtin/bo") == tmp_path / "builtin" / "bo.safetensors"
    assert library.find("mia") == tmp_path / "library" / "mia.safetensors"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("builtin/anna", "did you mean 'builtin/ana' or 'builtin/bo'? known: builtin/ana, builtin/bo, mia"),
        ("ana", "no concept 'ana' in your library; the shipped one is 'builtin/ana'"),
        ("bob", "known: builtin/ana, builtin/bo, mia; or give the path of a .safetensors file"),
        ("nobody-like-it", "no concept 'nobody-like-it'; known: builtin/ana"),
    ],
)
def test_unknown_concept_is_rejected_with_suggestions(library, name, expected):
    with pytest.raises(ConceptError) as caught:
        library.find(name)
    assert expected in str(caught.value)


def test_relative_path_is_in_the_working_folder(library, golden, monkeypatch):
    monkeypatch.chdir(golden)
    concept = library.load("char_a.safetensors")
    assert (concept.name, concept.source) == ("char_a", "char_a.safetensors")
    assert library.find(str(golden / "char_a.safetensors")) == golden / "char_a.safetensors"


def test_source_has_no_folder(library, golden):
    assert library.load(str(golden / "char_a.safetensors")).source == "char_a.safetensors"
    assert library.load("builtin/ana").source == "builtin/ana"


def test_missing_file_is_rejected(library, tmp_path):
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such file"):
        library.load(str(tmp_path / "gone.safetensors"))


@pytest.fixture
def folders(library, golden, tmp_path) -> Library:
    """Two more folders: mia and lou are in the first, lou and ivy in the second."""
    for folder, names in (("first", ("mia", "lou")), ("second", ("lou", "ivy"))):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(golden / "char_b.safetensors", tmp_path / folder / f"{name}.safetensors")
    return Library(
        library.builtin_folder, library.user_folder, (tmp_path / "first", tmp_path / "gone", tmp_path / "second")
    )


def test_first_folder_with_a_name_is_used(folders, tmp_path):
    assert [name for name, _ in folders.files()] == ["builtin/ana", "builtin/bo", "mia", "lou", "ivy"]
    assert folders.find("mia") == tmp_path / "library" / "mia.safetensors"
    assert folders.find("lou") == tmp_path / "first" / "lou.safetensors"
    assert folders.load("ivy").source == "ivy"
    hidden = [(name, path.parent.name, meant.parent.name) for name, path, meant in folders.hidden_files()]
    assert hidden == [("mia", "first", "library"), ("lou", "second", "first")]


def test_hidden_files_of_macos_are_skipped(library, tmp_path):
    (tmp_path / "library" / "._mia.safetensors").write_bytes(b"\0\5\x16\7")
    assert [name for name, _ in library.files()] == ["builtin/ana", "builtin/bo", "mia"]


@pytest.mark.parametrize("name", ["../library/mia", "builtin/../library/mia", "/etc/passwd", "./mia", "mia/../mia"])
def test_name_with_a_path_is_unknown(library, name):
    with pytest.raises(ConceptError, match=r"no concept '.*'; .*known: builtin/ana, builtin/bo, mia"):
        library.find(name)
    with pytest.raises(ConceptError, match=r"no concept '.*' in your library; .*known: mia"):
        library.remove(name)


@pytest.mark.parametrize("target", ["../secret/eve.safetensors", "eve.safetensors", "/etc/hostname"])
def test_link_out_of_the_library_is_rejected(library, golden, tmp_path, target):
    (tmp_path / "secret").mkdir()
    shutil.copy(golden / "char_a.safetensors", tmp_path / "secret" / "eve.safetensors")
    os.symlink(target, tmp_path / "library" / "eve.safetensors")
    with pytest.raises(ConceptError, match=r"eve.safetensors is a link that leads out of its folder; import"):
        library.load("eve")


def test_link_within_the_library_and_linked_library_are_read(library, tmp_path):
    os.symlink("mia.safetensors", tmp_path / "library" / "amy.safetensors")
    os.symlink(tmp_path / "library", tmp_path / "link")
    assert library.load("amy").adapter.keys() == library.load("mia").adapter.keys()
    assert Library(library.builtin_folder, tmp_path / "link").load("amy").name == "amy"


def test_shipped_concepts_may_be_links(library, golden, tmp_path):
    os.symlink(golden / "char_a.safetensors", tmp_path / "builtin" / "cy.safetensors")
    assert library.load("builtin/cy").name == "cy"


def test_only_concepts_of_the_user_folder_are_removed(folders, tmp_path):
    assert folders.remove("mia") == tmp_path / "library" / "mia.safetensors"
    assert not (tmp_path / "library" / "mia.safetensors").exists()
    assert folders.find("mia") == tmp_path / "first" / "mia.safetensors"
    for name, expected in (
        ("mia", "'mia' is in .*first, which costars only reads; delete the file there"),
        ("builtin/ana", "'builtin/ana' is shipped with costars and cannot be removed"),
        ("builtin/eve", "no concept 'builtin/eve' in your library; known: none"),
        ("ana", "no concept 'ana' in your library; known: none"),
    ):
        with pytest.raises(ConceptError, match=expected):
            folders.remove(name)


def test_removing_a_link_keeps_its_target(library, golden, tmp_path):
    os.symlink(golden / "char_a.safetensors", tmp_path / "library" / "eve.safetensors")
    library.remove("eve")
    assert not os.path.lexists(tmp_path / "library" / "eve.safetensors")
    assert (golden / "char_a.safetensors").is_file()


def test_extra_folders_are_searched_recursively_and_higher_files_first(library, golden, tmp_path):
    for where in ("loras/zoe.safetensors", "loras/people/zoe.safetensors", "loras/people/far/kim.safetensors"):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(golden / "char_a.safetensors", tmp_path / where)
    recursive = Library(library.builtin_folder, library.user_folder, (tmp_path / "loras",))
    assert [name for name, _ in recursive.files()] == ["builtin/ana", "builtin/bo", "mia", "zoe", "kim"]
    assert recursive.find("zoe") == tmp_path / "loras" / "zoe.safetensors"
    assert recursive.load("kim").name == "kim"
    (hidden,) = recursive.hidden_files()
    assert hidden == ("zoe", tmp_path / "loras" / "people" / "zoe.safetensors", tmp_path / "loras" / "zoe.safetensors")
    with pytest.raises(ConceptError, match="costars only reads; delete the file there"):
        recursive.remove("kim")


@pytest.mark.parametrize("which", ["library", "loras"])
def test_library_that_cannot_be_read_is_not_an_empty_one(library, tmp_path, which):
    (tmp_path / "file").touch()
    folders = {"library": library.user_folder, "loras": tmp_path / "loras", which: tmp_path / "file"}
    unreadable = Library(library.builtin_folder, folders["library"], (folders["loras"],))
    with pytest.raises(ConceptError, match=r"file: the folder of concepts cannot be read \(Not a directory\); correct"):
        list(unreadable.files())


def test_folder_without_permission_is_told(library, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(ConceptError, match=r"the folder of concepts cannot be read \(Permission denied\)"):
        library.find("mia")


def test_concept_is_read_again_only_if_its_file_changed(library, golden, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(cache, "load_concept", lambda *args: reads.append(args) or load_concept(*args))
    file = tmp_path / "mine.safetensors"
    shutil.copy(golden / "char_a.safetensors", file)
    first = library.load(str(file))
    assert library.load(str(file)) is first and len(reads) == 1
    os.utime(file, ns=(1, 1))
    assert library.load(str(file)) is not first and len(reads) == 2
    (tmp_path / "adapter_config.json").write_text("{}")
    library.load(str(file))
    assert len(reads) == 3


def test_cache_holds_at_most_its_bytes(golden):
    concept = load_concept(golden / "char_a.safetensors", "a", "a")
    own = cache.ConceptCache(max_bytes=int(2.5 * cache.count_bytes(concept)))
    loaded = [own.load(golden / "char_a.safetensors", name, name) for name in "abac"]
    assert loaded[0] is loaded[2] and [key[0] for key in own.concepts] == ["a", "c"]


def test_file_that_is_being_written_is_no_concept(library, golden, tmp_path):
    with temporary_folder(tmp_path / "library") as folder:
        shutil.copy(golden / "char_a.safetensors", folder / "half.safetensors")
        both = Library(tmp_path / "builtin", tmp_path / "none", [tmp_path / "library"])
        assert [name for name, _ in both.files()] == ["builtin/ana", "builtin/bo", "mia"]
