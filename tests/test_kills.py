"""A process that is killed at any moment of a write leaves the old or the new result, whole; the next run cleans up."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from costars.concepts.import_file import ImportOptions, import_concept
from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.files import atomic
from costars.files.atomic import TensorFile, write_safetensors
from costars.files.output_folder import lock_results
from costars.records.plan import read_plan, write_plan
from costars.records.png_metadata import write_picture
from costars.train.checkpoint import load_checkpoint, save_checkpoint
from costars.types import Layout, Picture, Plan

CALLS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir")
KILLED, MOST_CALLS = 77, 60
TEXTS = OLD, NEW, NEXT = "old", "newer", "next"
Write, Read = Callable[[str], object], Callable[[], str]


def run_and_kill(write: Callable[[], object], at: int) -> bool:
    """Run in another process that is killed before its at-th change of a folder; False if it has fewer."""
    process = os.fork()
    if process == 0:
        count = 0

        def killing(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == at:
                    os._exit(KILLED)
                return call(*arguments, **options)

            return counted

        for name in CALLS:
            setattr(os, name, killing(getattr(os, name)))
        atomic.exchange = killing(atomic.exchange)
        try:
            write()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def check_every_moment(folder: Path, write: Write, read: Read) -> None:
    """write(text) writes a result that read() gives back as that text; nothing else is left in the folder."""
    write(OLD)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    shutil.copytree(folder, folder.parent / "old")
    seen = set()
    for at in range(1, MOST_CALLS):
        if not run_and_kill(lambda: write(NEW), at):
            break
        seen.add(read())
        write(NEXT)
        assert read() == NEXT and {path.relative_to(folder) for path in folder.rglob("*")} == names
        shutil.rmtree(folder)
        shutil.copytree(folder.parent / "old", folder)
    assert at > 2 and OLD in seen and seen <= {OLD, NEW}


@pytest.fixture
def plan(make_scene, make_region) -> Callable[[str], Plan]:
    """A plan whose every file is different for another text."""

    def make(text: str) -> Plan:
        share = len(text) / 10
        layout = Layout(Image.new("RGB", (64, 64), (len(text), 0, 0)), torch.full((11, 4, 8, 8), share), {}, text, 20)
        regions = {"a": make_region("man", (0, 0, share, 1)), "b": make_region("woman", (share, 0, 1, 1), depth=1)}
        return Plan(make_scene(), layout, regions)

    return make


def test_plan(plan, tmp_path):
    def read() -> str:
        found = read_plan(tmp_path / "out")
        assert not found.edited
        return found.layout.prompt

    check_every_moment(tmp_path / "out", lambda text: write_plan(plan(text), tmp_path / "out", replace=True), read)


def test_picture(plan, tmp_path):
    versions = {"costars": "0", "model_sha256": "abcdef0123456789", "scheduler": "EulerDiscreteScheduler"}
    out = tmp_path / "out"

    def write(text: str) -> None:
        made, image = plan(text), Image.new("RGB", (8, 8), (len(text), 0, 0))
        picture = Picture(image, made.scene, made, {}, {"stage1": len(text), "stage2": 1}, {}, versions)
        write_picture(picture, out, replace=True)

    def read() -> str:
        with lock_results(out), Image.open(out / "picture.png") as image, Image.open(out / "layout.png") as layout:
            counts = {image.getpixel((0, 0))[0], layout.getpixel((0, 0))[0]}
            counts.add(json.loads((out / "result.json").read_text())["rows"]["stage1"])
        (count,) = counts
        return next(text for text in TEXTS if len(text) == count)

    check_every_moment(out, write, read)


def test_import(golden, tmp_path):
    library = tmp_path / "library"

    def write(text: str) -> None:
        import_concept(golden / "char_a.safetensors", library, ImportOptions(name="x", trigger=text, overwrite=True))

    check_every_moment(library, write, lambda: load_concept(library / "x.safetensors", "x", "x").trigger)


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("target", ["mia", "mia.safetensors"])
def test_export(target, can_exchange, tmp_path, monkeypatch):
    path = tmp_path / "exports" / target
    names = ("mia.safetensors",) if path.suffix else ("lora.safetensors", "embedding.safetensors")
    if not can_exchange:
        monkeypatch.setattr("costars.files.atomic.exchange", lambda one, other: False)

    def write(text: str, overwrite: bool = True) -> None:
        files = {name: TensorFile({"a": torch.ones(2)}, {"text": text}) for name in names}
        write_safetensors(files, path, not path.suffix, overwrite)

    def read() -> str:
        if not can_exchange:  # the next export brings the folder back
            with pytest.raises(ConceptError, match="already exists"):
                write("other", overwrite=False)
        texts = set()
        for file in [path] if path.suffix else path.iterdir():
            with safe_open(file, "pt") as opened:
                texts.add(opened.metadata()["text"])
        (text,) = texts
        return text

    check_every_moment(path.parent, write, read)


def test_checkpoint_of_a_training(tmp_path):
    path = tmp_path / "work" / "checkpoint.safetensors"

    def write(text: str) -> None:
        save_checkpoint(path, {"a": torch.ones(2)}, {"text": text})

    check_every_moment(path.parent, write, lambda: load_checkpoint(path)[1]["text"])


def test_two_imports_of_one_name_at_once(golden, tmp_path, monkeypatch):
    """Both pass the first check; one is written, the other is told, and what each reports is its own."""
    library = tmp_path / "library"
    source = tmp_path / "a.safetensors"
    save_file(load_file(golden / "char_a.safetensors"), source)
    results = []

    def import_as(trigger: str, overwrite: bool) -> None:
        options = ImportOptions(name="x", trigger=trigger, overwrite=overwrite)
        results.append(import_concept(source, library, options).concept.trigger)

    from costars.concepts import import_file

    save_concept = import_file.save_concept

    def meanwhile(*arguments) -> None:
        monkeypatch.setattr(import_file, "save_concept", save_concept)
        import_as("inner", overwrite)
        save_concept(*arguments)

    for overwrite in (False, True):
        monkeypatch.setattr(import_file, "save_concept", meanwhile)
        if overwrite:
            import_as("outer", overwrite)
        else:
            with pytest.raises(ConceptError, match="'x' is already in your library"):
                import_as("outer", overwrite)
        assert [path.name for path in library.iterdir()] == ["x.safetensors"]
    assert results == ["inner", "inner", "outer"]
