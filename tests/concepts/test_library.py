"""Where concepts are found, and what is said when one is not."""

import os
import shutil

import pytest

from costars.concepts.library import Store
from costars.errors import ConceptError


@pytest.fixture
def store(golden, tmp_path) -> Store:
    """Two shipped concepts and one of the user's."""
    for folder, name, source in (("builtin", "ana", "a"), ("builtin", "bo", "b"), ("library", "mia", "a")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(golden / f"char_{source}.safetensors", tmp_path / folder / f"{name}.safetensors")
    return Store(tmp_path / "builtin", tmp_path / "library")


def test_shipped_and_own_concepts_are_listed_as_a_scene_writes_them(store):
    assert [name for name, _ in store.files()] == ["builtin/ana", "builtin/bo", "mia"]


def test_folders_that_are_not_there_hold_nothing(tmp_path):
    assert list(Store(tmp_path / "none", tmp_path / "neither").files()) == []


def test_names_lead_to_their_files(store, tmp_path):
    assert store.find("builtin/bo") == tmp_path / "builtin" / "bo.safetensors"
    assert store.find("mia") == tmp_path / "library" / "mia.safetensors"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("builtin/anna", "did you mean 'builtin/ana' or 'builtin/bo'? known: builtin/ana, builtin/bo, mia"),
        ("ana", "no concept 'ana' in your library; the shipped one is 'builtin/ana'"),
        ("bob", "known: builtin/ana, builtin/bo, mia; or give the path of a .safetensors file"),
        ("nobody-like-it", "no concept 'nobody-like-it'; known: builtin/ana"),
    ],
)
def test_a_missing_concept_names_the_near_and_the_known(store, asked, said):
    with pytest.raises(ConceptError) as caught:
        store.find(asked)
    assert said in str(caught.value)


def test_a_relative_file_is_beside_the_scene(store, golden):
    concept = store.load("char_a.safetensors", golden)
    assert (concept.name, concept.source) == ("char_a", "char_a.safetensors")
    assert store.find(str(golden / "char_a.safetensors"), golden / "elsewhere") == golden / "char_a.safetensors"


def test_where_a_file_lay_is_not_kept(store, golden):
    assert store.load(str(golden / "char_a.safetensors")).source == "char_a.safetensors"
    assert store.load("builtin/ana").source == "builtin/ana"


def test_a_file_that_is_not_there_is_an_error(store, golden):
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such file"):
        store.load("gone.safetensors", golden)


@pytest.fixture
def folders(store, golden, tmp_path) -> Store:
    """Two more folders: mia and lou are in the first, lou and ivy in the second."""
    for folder, names in (("first", ("mia", "lou")), ("second", ("lou", "ivy"))):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(golden / "char_b.safetensors", tmp_path / folder / f"{name}.safetensors")
    return Store(store.builtin, store.library, (tmp_path / "first", tmp_path / "gone", tmp_path / "second"))


def test_other_folders_come_after_the_library_and_the_first_that_has_a_name_is_meant(folders, tmp_path):
    assert [name for name, _ in folders.files()] == ["builtin/ana", "builtin/bo", "mia", "lou", "ivy"]
    assert folders.find("mia") == tmp_path / "library" / "mia.safetensors"
    assert folders.find("lou") == tmp_path / "first" / "lou.safetensors"
    assert folders.load("ivy").source == "ivy"
    hidden = [(name, path.parent.name, meant.parent.name) for name, path, meant in folders.hidden()]
    assert hidden == [("mia", "first", "library"), ("lou", "second", "first")]


def test_what_other_systems_leave_beside_files_is_no_concept(store, tmp_path):
    (tmp_path / "library" / "._mia.safetensors").write_bytes(b"\0\5\x16\7")
    assert [name for name, _ in store.files()] == ["builtin/ana", "builtin/bo", "mia"]


@pytest.mark.parametrize("name", ["../library/mia", "builtin/../library/mia", "/etc/passwd", "./mia", "mia/../mia"])
def test_a_name_that_climbs_is_no_name(store, name):
    with pytest.raises(ConceptError, match=r"no concept '.*'; .*known: builtin/ana, builtin/bo, mia"):
        store.find(name)
    with pytest.raises(ConceptError, match=r"no concept '.*' in your library; .*known: mia"):
        store.remove(name)


@pytest.mark.parametrize("target", ["../secret/eve.safetensors", "eve.safetensors", "/etc/hostname"])
def test_a_link_that_leads_out_of_the_library_is_refused(store, golden, tmp_path, target):
    (tmp_path / "secret").mkdir()
    shutil.copy(golden / "char_a.safetensors", tmp_path / "secret" / "eve.safetensors")
    os.symlink(target, tmp_path / "library" / "eve.safetensors")
    with pytest.raises(ConceptError, match=r"eve.safetensors is a link that leads out of its folder; import"):
        store.load("eve")


def test_a_link_within_the_library_and_a_library_that_is_a_link_are_as_good_as_files(store, tmp_path):
    os.symlink("mia.safetensors", tmp_path / "library" / "amy.safetensors")
    os.symlink(tmp_path / "library", tmp_path / "link")
    assert store.load("amy").adapter.keys() == store.load("mia").adapter.keys()
    assert Store(store.builtin, tmp_path / "link").load("amy").name == "amy"


def test_shipped_concepts_may_be_links_as_package_managers_make_them(store, golden, tmp_path):
    os.symlink(golden / "char_a.safetensors", tmp_path / "builtin" / "cy.safetensors")
    assert store.load("builtin/cy").name == "cy"


def test_a_concept_of_the_library_can_be_removed_and_no_other(folders, tmp_path):
    assert folders.remove("mia") == tmp_path / "library" / "mia.safetensors"
    assert not (tmp_path / "library" / "mia.safetensors").exists()
    assert folders.find("mia") == tmp_path / "first" / "mia.safetensors"
    for name, said in (
        ("mia", "'mia' is in .*first, which costars only reads; delete the file there"),
        ("builtin/ana", "'builtin/ana' is shipped with costars and cannot be removed"),
        ("builtin/eve", "no concept 'builtin/eve' in your library; known: none"),
        ("ana", "no concept 'ana' in your library; known: none"),
    ):
        with pytest.raises(ConceptError, match=said):
            folders.remove(name)


def test_removing_a_link_leaves_what_it_leads_to(store, golden, tmp_path):
    os.symlink(golden / "char_a.safetensors", tmp_path / "library" / "eve.safetensors")
    store.remove("eve")
    assert not os.path.lexists(tmp_path / "library" / "eve.safetensors")
    assert (golden / "char_a.safetensors").is_file()


def test_other_folders_are_looked_through_and_what_lies_higher_up_goes_first(store, golden, tmp_path):
    for where in ("loras/zoe.safetensors", "loras/people/zoe.safetensors", "loras/people/far/kim.safetensors"):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(golden / "char_a.safetensors", tmp_path / where)
    wide = Store(store.builtin, store.library, (tmp_path / "loras",))
    assert [name for name, _ in wide.files()] == ["builtin/ana", "builtin/bo", "mia", "zoe", "kim"]
    assert wide.find("zoe") == tmp_path / "loras" / "zoe.safetensors"
    assert wide.load("kim").name == "kim"
    (told,) = wide.hidden()
    assert told == ("zoe", tmp_path / "loras" / "people" / "zoe.safetensors", tmp_path / "loras" / "zoe.safetensors")
    with pytest.raises(ConceptError, match="costars only reads; delete the file there"):
        wide.remove("kim")
