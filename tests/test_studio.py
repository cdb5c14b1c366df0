"""The studio: models are loaded once, scenes are looked up before anything is drawn, loops can be stopped."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from costars.errors import ConceptError, ModelError, SceneError
from costars.model.offload import Offload
from costars.model.predict import predict_noise
from costars.retry import last, retry_seeds
from costars.studio import open_studio
from costars.types import Picture, Plan, RegionError, Step


@pytest.fixture
def studio(library):
    return open_studio("cpu", "float32", library=library)


@pytest.fixture
def halves(make_region, monkeypatch):
    """A segmenter that finds a man on the left and a woman on the right."""
    found = [make_region("man", (0, 0, 0.5, 1)), make_region("woman", (0.5, 0, 1, 1))]
    monkeypatch.setattr("costars.segment.cross_attention.open_segmenter", lambda machine: lambda layout, names: found)


def test_steps_come_one_by_one_and_the_picture_last(studio, make_scene, halves):
    *steps, picture = studio.render_steps(make_scene(steps=4))
    assert isinstance(picture, Picture)
    assert [(s.stage, s.index, s.of) for s in steps] == [
        *(("layout", i, 4) for i in range(4)),
        *(("personalise", i, 4) for i in range(1, 4)),
    ]
    assert all(isinstance(s, Step) and s.latent.shape == (1, 4, 8, 8) for s in steps)
    assert list(picture.plan.regions) == ["a", "b"]
    own = {"model.text_encoder", "model.text_encoder_2", "model.vae"}
    assert set(picture.hashes) == {*own, "cast.a.concept", "cast.b.concept", "masks"}
    assert picture.rows == {
        "stage1": 8,
        "stage2": 21,
    }
    assert set(picture.versions) >= {"python", "costars", "torch", "diffusers", "model_sha256"}
    assert studio.render(picture.plan).image.tobytes() == picture.image.tobytes()


def test_a_render_that_is_stopped_leaves_nothing_on_the_model(studio, make_scene, halves, trace):
    scene = make_scene()
    unet = studio.model(scene.model).unet
    before = trace(unet)
    steps = studio.render_steps(scene)
    assert any(isinstance(step, Step) and step.stage == "personalise" for step in steps)
    assert trace(unet) != before
    steps.close()
    assert trace(unet) == before


def test_a_model_is_loaded_once(studio, make_scene):
    scene = make_scene()
    assert studio.model(scene.model) is studio.model(scene.model)
    assert studio.load_seconds > 0


def test_a_hub_id_is_looked_up_once(studio, make_scene, halves, golden, monkeypatch):
    calls = []
    monkeypatch.setattr("costars.model.hub.list_repo_files", lambda *_, **__: [])
    monkeypatch.setattr(
        "costars.model.hub.snapshot_download", lambda name, **_: calls.append(name) or str(golden / "tiny-sdxl")
    )
    scene = make_scene(model="org/tiny", steps=2)
    studio.render(studio.plan(scene))
    studio.render(scene)
    assert calls == ["org/tiny"] and len(studio.models) == 1


@pytest.fixture
def loads(monkeypatch):
    """The names of the models that were loaded, which are no models; one of them needs a device for itself."""
    names, resident = [], []

    def load(source, *_):
        names.append(source.name)
        alone = not any(len(studio.models) for studio in resident)
        return SimpleNamespace(offload=Offload("full" if "large" not in source.name or alone else "offload", None))

    monkeypatch.setattr("costars.studio.load_model", load)
    return names, resident


def test_the_models_that_were_used_last_are_kept(studio, tmp_path, loads):
    names, _ = loads
    for name in "abc":
        (tmp_path / name).mkdir()
    models = [studio.model(str(tmp_path / name)) for name in "abacab"]
    assert [name[-1] for name in names] == ["a", "b", "c", "b"] and len(studio.models) == 2
    assert models[0] is models[2] is models[4] and models[1] is not models[5]


def test_a_model_that_fits_alone_gets_the_others_room(studio, tmp_path, loads):
    names, resident = loads
    resident.append(studio)
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    studio.model(str(tmp_path / "small"))
    assert studio.model(str(tmp_path / "large")).offload.tier == "full" and len(studio.models) == 1
    assert [name.rpartition("/")[2] for name in names] == ["small", "large", "large"]


def test_a_controlnet_is_loaded_once_for_each_memory_tier(studio, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("costars.studio.load_controlnet", lambda folder, name, model: loaded.append(model.offload.tier))
    for name in ("check_controlnet", "load_control_image", "compute_sha256"):
        monkeypatch.setattr(f"costars.studio.{name}", lambda *_: None)
    control = SimpleNamespace(model=str(tmp_path), image="pose.png", scale=1.0, start=0.0, end=1.0)
    for tier in ("full", "offload", "full"):
        model = SimpleNamespace(offload=Offload(tier, torch.device("cpu")))
        scene = SimpleNamespace(controls=[control])
        assert len(studio._load_controls(SimpleNamespace(scene=scene, model=model, size_px=(64, 64)))) == 1
    assert loaded == ["full", "offload"]


@pytest.fixture
def tight(monkeypatch):
    """A UNet that runs out of memory above two rows."""

    def predict(unet, sample, *rest):
        if len(sample) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict_noise(unet, sample, *rest)

    monkeypatch.setattr("costars.sample.row_predictor.predict_noise", predict)


def test_rows_are_lowered_first_and_stage_1_is_not_drawn_again(studio, make_scene, halves, tight):
    scene = make_scene(steps=3)
    model = studio.model(scene.model)
    *steps, picture = studio.render_steps(scene)
    assert [step.stage for step in steps] == ["layout"] * 3 + ["personalise"] * 2
    assert picture.max_rows == 2 and picture.memory == "full" and studio.model(scene.model).unet is model.unet
    (note,) = (note for note in picture.notes if "memory" in note)
    assert note == "memory ran out: at most 2 rows per UNet call from now on, which is slower"
    assert note in studio.plan(scene).layout.notes and note in studio.render(scene).notes


def test_tiers_are_lowered_after_rows_and_every_change_is_said(studio):
    studio.device = torch.device("cuda")
    assert [studio._lower_memory() for _ in range(4)] == [True, True, True, False]
    assert (studio.max_rows, studio.memory) == (2, "sequential")
    assert [note.partition(" from now on")[0] for note in studio.memory_notes] == [
        "memory ran out: at most 2 rows per UNet call",
        "memory ran out: memory 'offload'",
        "memory ran out: memory 'sequential'",
    ]


def test_a_cpu_has_no_lower_tier(studio):
    assert [studio._lower_memory() for _ in range(2)] == [True, False] and studio.memory == "auto"


def test_no_segmenter_is_opened_where_every_member_has_a_mask(studio, make_scene, tmp_path, monkeypatch):
    for name, box in (("a", (0, 0, 32, 64)), ("b", (32, 0, 64, 64))):
        mask = Image.new("L", (64, 64))
        mask.paste(255, box)
        mask.save(tmp_path / f"{name}.png")
    opened = []

    def open_nobody(name):
        opened.append(name)
        return lambda machine, **options: lambda layout, class_names: []

    monkeypatch.setattr("costars.studio.load_segmenter", open_nobody)
    where = {name: {"concept": f"char_{name}", "where": str(tmp_path / f"{name}.png")} for name in "ab"}
    assert [*studio.plan(make_scene(steps=1, cast=where)).regions] == ["a", "b"] and not opened
    with pytest.raises(RegionError, match="does not show b"):
        studio.plan(make_scene(steps=1, cast={**where, "b": {"concept": "char_b"}}))
    assert opened == ["attention"]


def test_segmenters_are_opened_once_for_equal_options(studio, make_scene, monkeypatch):
    opened = []

    def count(name):
        return lambda machine, **options: opened.append((name, options)) or SimpleNamespace()

    monkeypatch.setattr("costars.studio.load_segmenter", count)
    by_threshold = [{"name": "clipseg", "threshold": threshold} for threshold in (0.3, 0.4, 0.3, 0.5, 0.3)]
    for segmenter in by_threshold:
        studio._open_segmenter(SimpleNamespace(scene=make_scene(segmenter=segmenter)))
    assert [options["threshold"] for _, options in opened] == [0.3, 0.4, 0.5]
    studio._lower_memory()
    assert len(studio.segmenters) == 0


def test_a_picture_does_not_keep_cached_attention(studio, make_scene, halves):
    plan = studio.plan(make_scene(steps=2, method={"name": "two_stage", "attention_cache": "device"}))
    picture = studio.render(plan)
    assert plan.layout.attention and not picture.plan.layout.attention
    with pytest.raises(SceneError, match="attention_cache=replay for other plans"):
        studio.render(picture.plan)


def test_pictures_leave_no_tensor_but_the_models(studio, make_scene, halves, count_tensors):
    settings = [{}, {"scheduler": "unipc"}, {"method": {"name": "two_stage", "attention_cache": "device"}}]
    settings += [{"style": "char_b"}, {"guidance_scale": 1.0}, {"method": "multi_lora"}]
    studio.render(make_scene(steps=2))
    before, counts = count_tensors(), []
    for seed, changes in enumerate(settings):
        cast = {name: {"concept": f"char_{name}", "weight": 1 - seed / 10} for name in "ab"}
        studio.render(make_scene(steps=2, seed=seed, cast=cast, **changes))
        counts.append(count_tensors())
    studio.plan(make_scene(steps=1))
    steps = studio.render_steps(make_scene(steps=2))
    assert any(isinstance(step, Step) and step.stage == "personalise" for step in steps)
    steps.close()
    assert {*counts, count_tensors()} == {before}


@pytest.mark.parametrize("member", ["a", "b"])
def test_concepts_are_looked_up_before_the_first_step(studio, make_scene, member):
    cast = {"a": {"concept": "char_a"}, "b": {"concept": "char_b"}} | {member: {"concept": "char_q"}}
    with pytest.raises(ConceptError, match="no concept 'char_q'"):
        next(studio.render_steps(make_scene(cast=cast)))


def test_a_device_or_number_format_that_is_not_there_is_refused(library):
    with pytest.raises(ModelError, match="dtype 'int8': want one of auto, float32, bfloat16, float16"):
        open_studio("cpu", "int8", library=library)
    with pytest.raises(ModelError, match="device 'tpu': want one of auto, cpu, cuda"):
        open_studio("tpu", library=library)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="torch sees no CUDA device here"):
            open_studio("cuda", library=library)


def test_bfloat16_draws_a_picture_too(library, make_scene):
    scene = make_scene(steps=2, method="multi_lora")
    picture = open_studio("cpu", "bfloat16", library=library).render(scene)
    assert picture.image.size == (64, 64) and picture.plan is None
    assert picture.rows == {"stage1": 0, "stage2": 4}


@pytest.mark.parametrize(("retries", "tried"), [(0, [7]), (2, [7, 8, 9]), (5, [7, 8, 9, 10])])
def test_retries_take_the_next_seeds_until_everyone_is_there(make_scene, retries, tried):
    seeds = []

    def steps(scene):
        seeds.append(scene.seed)
        if scene.seed < 10:
            raise RegionError(f"nobody with seed {scene.seed}")
        yield Plan(scene, None, {})

    events = retry_seeds(steps, make_scene(seed=7), retries)
    if tried[-1] < 10:
        before = f"seeds 7 to {tried[-1]} were tried, this is the last: " if retries else ""
        with pytest.raises(RegionError, match=f"^{before}nobody with seed {tried[-1]}$"):
            last(events, Plan)
    else:
        assert last(events, Plan).scene.seed == 10
    assert seeds == tried


def lossy(make_region, losses):
    """Renders that lose a member on these seeds."""

    def steps(scene):
        yield "a step"
        lost = ("a",) if scene.seed in losses else ()
        yield Picture(None, scene, None, {}, {}, {}, {}, lost=lost)

    return steps


@pytest.mark.parametrize(("losses", "seed"), [((0,), 1), ((0, 1, 2), 0), ((), 0)])
def test_a_picture_that_lost_a_member_is_given_only_if_no_seed_does_better(make_scene, make_region, losses, seed):
    picture = last(retry_seeds(lossy(make_region, losses), make_scene(seed=0), 2), Picture)
    assert picture.scene.seed == seed and bool(picture.lost) == (0 in losses and seed == 0)


def test_a_mask_of_another_shape_is_found_out_before_anything_is_drawn(studio, make_scene, tmp_path):
    Image.new("L", (128, 64), 255).save(tmp_path / "wide.png")
    cast = {"a": {"concept": "char_a", "where": str(tmp_path / "wide.png")}, "b": {"concept": "char_b"}}
    with pytest.raises(SceneError, match=r"wide\.png' is 128 x 64 px, the picture 64 x 64 px; use a mask with"):
        studio.resolve(make_scene(cast=cast))


@pytest.mark.parametrize("name", ["grounded_sam", "owl_sam"])
def test_a_detector_that_is_not_there_is_told_before_anything_is_drawn(studio, make_scene, name):
    scene = make_scene(segmenter={"name": name, "detector": "nowhere"})
    with pytest.raises(ModelError, match=r"model '/.*/nowhere': no such folder"):
        next(studio.plan_steps(scene))


def test_a_plan_whose_masks_or_members_no_longer_fit_it_is_refused(studio, make_scene, make_region, halves):
    plan = studio.plan(make_scene(steps=4))
    tiny = make_region("woman", (0.9, 0.9, 0.92, 0.95))
    with pytest.raises(RegionError, match=r"b's visible mask covers 0.07%"):
        studio.render(replace(plan, regions={**plan.regions, "b": tiny}))
    twice = make_region("woman", (0, 0, 0.45, 1))
    with pytest.raises(RegionError, match="a and b would share one figure"):
        studio.render(replace(plan, regions={**plan.regions, "b": twice}))
    with pytest.raises(
        SceneError, match=r"cast\.b: the plan.s region is a woman, but b is now a man; plan the scene again"
    ):
        studio.render(replace(plan, scene=make_scene(steps=4, cast={"a": {"concept": "char_a"}, "b": "char_a"})))
