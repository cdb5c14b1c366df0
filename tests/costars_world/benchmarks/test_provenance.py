"""What figures and pictures were made from."""

import hashlib
import json

import pytest

from costars_world.benchmarks import provenance


@pytest.fixture
def weights(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"1")
    monkeypatch.setattr(provenance, "WEIGHTS", {"builtin": folder, "judge": folder})
    return folder


def test_hash_changes_with_every_weight_file(weights):
    first = provenance.hash_weights("builtin")
    assert first == provenance.hash_weights("builtin")
    (weights / "card.json").write_text("{}")
    assert provenance.hash_weights("builtin") == first
    (weights / "a.safetensors").write_bytes(b"2")
    second = provenance.hash_weights("builtin")
    (weights / "a.safetensors").rename(weights / "b.safetensors")
    assert len({str(first), str(second), str(provenance.hash_weights("builtin"))}) == 3


def test_pictures_are_noted_beside_each_other(weights, tmp_path):
    for name, content in (("b.png", b"b"), ("a.png", b"a"), ("b.png", b"c")):
        (tmp_path / name).write_bytes(content)
        provenance.note_picture(tmp_path / name, f"draw {name}")
    notes = json.loads((tmp_path / provenance.DRAWN).read_text())
    assert list(notes) == ["a.png", "b.png"]
    assert notes["b.png"]["sha256"] == hashlib.sha256(b"c").hexdigest()
    assert notes["a.png"]["command"] == "draw a.png" and notes["a.png"]["weights"] == provenance.hash_weights("builtin")


def test_run_has_its_command_and_weights(weights):
    run = provenance.describe_run("python -m x", ["start", "--seeds", "8"])
    assert run["command"] == "python -m x start --seeds 8"
    assert run["weights"] == provenance.hash_weights("builtin", "judge") and "torch" in run["versions"]
