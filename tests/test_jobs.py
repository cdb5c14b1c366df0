"""Jobs are values: pickled, run anywhere, their results written."""

import json
import pickle

import pytest

from costars.errors import SceneError, TrainError
from costars.jobs import PlanJob, RenderJob, TrainJob, check_job, run_job, run_training
from costars.studio import open_studio
from costars.train.config import parse_config
from costars.train.loop import Progress
from costars.train.results import TrainingResult
from costars.train.session import Message
from costars.types import Picture, Plan, RegionError, Step


@pytest.fixture
def studio(library):
    return open_studio("cpu", "float32", library=library)


@pytest.fixture
def halves(make_region, monkeypatch):
    """A segmenter that finds a man on the left and a woman on the right."""
    found = [make_region("man", (0, 0, 0.5, 1)), make_region("woman", (0.5, 0, 1, 1))]
    monkeypatch.setattr("costars.segment.cross_attention.open_segmenter", lambda machine: lambda layout, names: found)


def test_a_plan_job_then_a_render_job_of_its_folder(studio, make_scene, halves, tmp_path):
    scene = make_scene(steps=4)
    job = pickle.loads(pickle.dumps(PlanJob(scene=scene, out=tmp_path / "plan")))
    *steps, plan = run_job(job, studio)
    assert all(isinstance(step, Step) for step in steps) and isinstance(plan, Plan)
    assert (tmp_path / "plan" / "plan.json").is_file()
    job = pickle.loads(pickle.dumps(RenderJob(scene=plan.scene, plan_folder=job.out, out=tmp_path / "picture")))
    *steps, picture = run_job(job, studio)
    assert {step.stage for step in steps} == {"personalise"} and isinstance(picture, Picture)
    direct = list(run_job(RenderJob(scene=scene, out=tmp_path / "direct"), studio))[-1]
    assert direct.image.tobytes() == picture.image.tobytes()
    assert json.loads((tmp_path / "direct" / "result.json").read_text())["seed"] == scene.seed


def test_a_layout_without_the_cast_is_written_and_named(studio, make_scene, tmp_path, monkeypatch):
    monkeypatch.setattr("costars.segment.cross_attention.open_segmenter", lambda machine: lambda layout, names: [])
    with pytest.raises(RegionError, match=r"does not show .*; see .*out/layout.png and .*out/masks/"):
        list(run_job(RenderJob(scene=make_scene(steps=2), out=tmp_path / "out"), studio))
    assert (tmp_path / "out" / "missing.json").is_file()


def test_a_job_that_cannot_write_or_contradicts_itself_is_rejected(make_scene, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SceneError, match="plan"):
        check_job(RenderJob(scene=make_scene(), out=tmp_path))
    with pytest.raises(SceneError, match="a plan has its seed; render the scene to use --retries"):
        check_job(RenderJob(scene=make_scene(), out=tmp_path / "new", plan_folder=tmp_path, retries=2))


def test_a_train_job_writes_its_concept_and_never_over_another(studio, library, golden, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "images" / "0.png")
    data = {"recipe": "lora", "name": "mia", "class": "woman", "images": "images", "add_trigger": True}
    data |= {"model": str(golden / "tiny-sdxl"), "settings": {"steps": 2, "size_conditioning": False}}
    job = pickle.loads(pickle.dumps(TrainJob(config=parse_config(data, "test", tmp_path), work=tmp_path / "work")))
    events = list(run_training(job, studio))
    assert [e.step for e in events if isinstance(e, Progress)] == [1, 2]
    assert any(isinstance(e, Message) and e.text.startswith("training lora in ") for e in events)
    assert any(isinstance(e, TrainingResult) for e in events) and (library / "mia.safetensors").is_file()
    with pytest.raises(TrainError, match=r"mia\.safetensors"):
        list(run_training(job, studio))
