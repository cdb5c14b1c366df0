"""Where concepts are found, and what is said when one is not."""

import shutil

import pytest

from costars.concepts.store import Store
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
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such concept file"):
        store.load("gone.safetensors", golden)
