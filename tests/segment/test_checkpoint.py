"""Vision checkpoints load from folders and the hub, and anything else is rejected."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from costars.errors import ModelError
from costars.segment.checkpoint import CheckpointKind, open_checkpoint
from costars.segment.clipseg import CLIPSEG
from costars.segment.detectors import GROUNDING_DINO, OWLV2
from costars.segment.sam import SAM

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_model_is_frozen_and_has_the_requested_dtype(models, dtype):
    model = open_checkpoint(SAM, str(models / "sam"), CPU, dtype, offline=True).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def copy_model(models: Path, name: str, target: Path) -> Path:
    shutil.copytree(models / name, target)
    return target


def load_error(kind: CheckpointKind, source: Path | str, *, offline: bool = True) -> str:
    with pytest.raises(ModelError) as error:
        open_checkpoint(kind, str(source), CPU, torch.float32, offline=offline)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_model_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_error(SAM, "some/sam") == (
        "model 'some/sam': no such folder, not in the Hugging Face cache, and costars is offline; "
        "download it once with a network, or give a folder"
    )
    assert "no such folder; give a folder" in load_error(SAM, __file__)
    assert load_error(SAM, "/no/where") == (
        "model '/no/where': no such folder; give a folder or a hub id such as facebook/sam-vit-huge"
    )
    monkeypatch.setattr(
        "costars.model.hub.list_repo_files", lambda *_, **__: (_ for _ in ()).throw(OSError("no\nroute"))
    )
    assert "the hub does not provide it (no route); check the id" in load_error(SAM, "some/sam", offline=False)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(("name", "revision"), [("some/sam", None), ("some/sam@v1", "v1")])
def test_hub_id_is_downloaded_at_its_revision_without_pickles(models, name, revision, offline, monkeypatch):
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(models / "sam")

    monkeypatch.setattr("costars.model.hub.snapshot_download", download)
    there = {None: ["model.safetensors"], "v1": ["model.safetensors", "model.fp16.safetensors"]}
    monkeypatch.setattr("costars.model.hub.list_repo_files", lambda repository, revision: there[revision])
    assert type(open_checkpoint(SAM, name, CPU, torch.float32, offline=offline).model) is hf.SamModel
    options = {"revision": revision, "local_files_only": offline}
    options["allow_patterns"] = ["*.json", "*.txt", "*.safetensors"]
    options["ignore_patterns"] = ["model.fp16.safetensors"] if revision and not offline else []
    assert asked == [("some/sam", options)]


def test_cached_hub_id_needs_no_network(models, tmp_path, monkeypatch):
    repository, commit = tmp_path / "models--some--sam", "0" * 40
    (repository / "snapshots").mkdir(parents=True)
    copy_model(models, "sam", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert type(open_checkpoint(SAM, "some/sam", CPU, torch.float32, offline=True).model) is hf.SamModel


@pytest.mark.parametrize(
    ("kind", "name"), [(GROUNDING_DINO, "owl"), (OWLV2, "sam"), (SAM, "clipseg"), (CLIPSEG, "dino")]
)
def test_model_of_another_kind_is_rejected(models, kind, name):
    found = {"owl": "owlv2", "sam": "sam", "clipseg": "clipseg", "dino": "grounding-dino"}[name]
    assert f"its model_type is {found}, expected {kind.model_type}; use" in load_error(kind, models / name)
    assert kind.example in load_error(kind, models / name)


def test_pickles_are_not_read(models, tmp_path):
    folder = copy_model(models, "sam", tmp_path / "sam")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "it has no .safetensors weights, only pytorch_model.bin (pickles are not read)" in load_error(SAM, folder)
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors", {"format": "pt"})
    assert "cannot be loaded (" in load_error(SAM, folder)


def test_incomplete_or_damaged_folder_is_rejected(models, tmp_path):
    folder = copy_model(models, "sam", tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    missing = sorted(name for name in weights if "mask_decoder" in name)[0]
    save_file({k: v for k, v in weights.items() if k != missing}, folder / "model.safetensors", {"format": "pt"})
    assert f"lacks 1 weights, the first is {missing}" in load_error(SAM, folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded (" in load_error(SAM, folder)
    (folder / "config.json").write_text("{")
    assert "its config.json is damaged; download it again" in load_error(SAM, folder)
    (folder / "config.json").unlink()
    assert "it has no config.json; use a sam checkpoint such as facebook/sam-vit-huge" in load_error(SAM, folder)
