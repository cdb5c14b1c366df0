"""Checkpoint names: folders, files and hub ids."""

from dataclasses import replace

import pytest

from costars.errors import ModelError
from costars.model.hub import Source, locate


def test_unknown_name_is_rejected(tmp_path):
    with pytest.raises(ModelError, match="model 'nope': no such folder or file; want a diffusers folder"):
        locate("nope", offline=True)


def test_missing_id_is_rejected_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match="model 'nobody/nothing@v1': no such folder, not in the Hugging Face cache"
    ) as e:
        locate("nobody/nothing@v1", offline=True)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("name", "revision"), [("some/model", "main"), ("some/model@v1", "v1")])
def test_cached_id_is_found_offline_at_its_revision(tmp_path, monkeypatch, name, revision):
    repository, commits = tmp_path / "models--some--model", {"main": "0" * 40, "v1": "1" * 40}
    (repository / "refs").mkdir(parents=True)
    for branch, commit in commits.items():
        (repository / "refs" / branch).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("costars.model.hub.HF_HUB_OFFLINE", True)  # as the variable of this name sets it
    assert locate(name, offline=False) == repository / "snapshots" / commits[revision]


def test_source_is_hashable_by_its_fields(tmp_path):
    source = Source("mine", tmp_path)
    assert hash(source) == hash(replace(source)) and source != replace(source, prediction="epsilon")
