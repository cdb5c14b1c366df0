"""The composition root: opens models, looks scenes up, plans and renders."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import ControlNetModel
from PIL import Image
from torch import Tensor

from costars.catalog import METHODS, SEGMENTERS, Machine
from costars.concepts.library import Store
from costars.errors import ModelError, SceneError, TrainError
from costars.files.safetensors_header import sha256_of
from costars.methods.encode import size_px
from costars.methods.paths import STYLE
from costars.methods.prompts import class_names
from costars.model.controlnet import check_control_net, control_image, load_control_net
from costars.model.hub import PART, PIPELINE, Source, located
from costars.model.load import load_model
from costars.model.model import Model
from costars.model.offload import TIERS, lower_tier
from costars.model.schedulers import scheduler_of
from costars.records.provenance import hashes_of, versions_of
from costars.resolve import check_classes, check_prompts, fitted, without_trigger
from costars.retry import last, spared
from costars.scene.options import Checkpoint
from costars.scene.scene import Scene
from costars.segment.match_cast import Limits, assign, check_regions, check_where, lost_members
from costars.settings import Settings, machine_settings
from costars.train.config import TrainSpec, recipe_of
from costars.train.data.captioning import load_captioner
from costars.train.data.dataset import prepared
from costars.train.data.subject import Teaching
from costars.train.loop import Progress, Taught, teach
from costars.train.recipes import Recipe
from costars.types import ControlNet, Job, Picture, Plan, Segmenter, Step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Lesson:
    """What is taught on which model, and a line for each picture that could not be read."""

    model: Model
    recipe: Recipe
    teachings: tuple[Teaching, ...]
    skipped: tuple[str, ...] = ()

    def steps(self, kept: Path | None = None, resume: bool = False) -> Generator[Progress | Taught, None, None]:
        """Every step; the last thing yielded is what was taught. kept is where its checkpoint is."""
        return teach(self.model, self.teachings, self.recipe, kept, resume)


@dataclass
class Studio:
    """Models in memory, one copy each, on one device."""

    device: torch.device
    dtype: torch.dtype
    settings: Settings
    max_rows: int = 0
    memory: str = "auto"
    models: dict[Source, Model] = field(default_factory=dict)
    control_nets: dict[Path, tuple[ControlNetModel, str]] = field(default_factory=dict)  # each with its sha256
    load_seconds: float = 0.0

    @property
    def store(self) -> Store:
        """Where concepts are looked up."""
        settings = self.settings
        return Store(settings.builtin / "concepts", settings.library, settings.concept_folders)

    def model(self, name: str, base: Path | None = None, checkpoint: Checkpoint | None = None) -> Model:
        """The model of this name, loaded once; a relative folder is looked up beside base.

        Raises ModelError if it is not there or not whole.
        """
        source = self._source(name, base, checkpoint or Checkpoint())
        if source not in self.models:
            began = time.perf_counter()
            segmenter = "world" if name == "builtin" else "attention"
            self.models[source] = load_model(source, self.device, self.dtype, self.max_rows, segmenter, self.memory)
            self.load_seconds += time.perf_counter() - began
        return self.models[source]

    def _source(self, name: str, base: Path | None, checkpoint: Checkpoint) -> Source:
        def find(name: str | None, what: str, wanted: Sequence[str] = PIPELINE) -> Path | None:
            offline = self.settings.offline
            return None if name is None else located(name, base, offline=offline, what=what, wanted=wanted)

        path = self.settings.builtin / "model" if name == "builtin" else find(name, "model")
        assert path is not None
        vae, config = find(checkpoint.vae, "checkpoint.vae", PART), find(checkpoint.config, "checkpoint.config")
        return Source(name, path, vae, config, checkpoint.prediction, checkpoint.tiles)

    def resolve(self, scene: Scene, base: Path | None = None) -> Job:
        """Look the scene's concepts up and hold them against its model; relative paths are beside base.

        What the scene leaves to its model is filled in. Raises SceneError for a scene of several pictures,
        ConceptError for a concept that is missing, damaged, or made for another model.
        """
        if scene.count > 1:
            raise SceneError(f"count {scene.count}: one picture is drawn at a time; go through scene.each()")
        scene = scene.settled()
        wanted = {name: member.concept for name, member in scene.cast.items()}
        if scene.style is not None:
            wanted[STYLE] = scene.style.concept
        model = self.model(scene.model, base, scene.checkpoint)
        scheduler_of(scene.scheduler, model.scheduler)
        concepts, notes, fits = fitted({name: self.store.load(source, base) for name, source in wanted.items()}, model)
        style = concepts.pop(STYLE, None)
        said = {name: member.trigger for name, member in scene.cast.items() if member.trigger}
        concepts |= {name: replace(concepts[name], trigger=trigger) for name, trigger in said.items()}
        check_classes(scene, concepts)
        model.latent_size(size_px(model, scene))
        check_where(scene.cast, base, size_px(model, scene))
        check_prompts(scene, concepts, style, model)
        notes = (*model.facts.notes, *notes, *without_trigger(scene, concepts))
        return Job(scene, concepts, base, style, self._controls(scene, model, base), notes, fits)

    def _controls(self, scene: Scene, model: Model, base: Path | None) -> tuple[ControlNet, ...]:
        controls = []
        for control in scene.controls:
            folder = located(control.model, base, offline=self.settings.offline, what="controls.model", wanted=PART)
            if folder not in self.control_nets:
                self.control_nets[folder] = load_control_net(folder, control.model, model), sha256_of(folder)
            net, sha256 = self.control_nets[folder]
            check_control_net(net, control.model, model)
            image = control_image(control.image, base, size_px(model, scene), model)
            drawn = sha256_of((base or Path()) / Path(control.image).expanduser())
            controls.append(ControlNet(net, image, control.scale, control.start, control.end, sha256, drawn))
        return tuple(controls)

    def lesson(self, spec: TrainSpec, base: Path | None = None) -> Lesson:
        """What a spec asks to be taught, its model loaded and its pictures read; relative paths are beside base.

        Raises TrainError for pictures, captions or settings that do not go together.
        """
        model = self.model(spec.model, base, spec.checkpoint)
        if model.residence.tier != TIERS[0]:
            raise TrainError(f"memory {model.residence.tier!r}: a model is taught whole; set COSTARS_MEMORY=full")
        recipe = recipe_of(spec, model.facts.family)
        describe = None
        if spec.caption is not None:
            describe = load_captioner(spec.caption, self.device, self.dtype, self.settings.offline, base)
        found = prepared(spec, recipe, base, describe)
        return Lesson(model, recipe, found.teachings, found.skipped)

    def train(self, spec: TrainSpec, base: Path | None = None) -> Taught:
        """The concepts of a spec, taught; `lesson(spec).steps()` yields every step instead."""
        return last(self.lesson(spec, base).steps(), Taught)

    def plan_steps(self, scene: Scene, base: Path | None = None) -> Iterator[Step | Plan]:
        """Stage 1 step by step; the last thing yielded is the plan."""
        yield from spared(lambda: self._plan(self.resolve(scene, base)), self._lowered)

    def render_steps(self, what: Scene | Plan, base: Path | None = None) -> Iterator[Step | Picture]:
        """Every step of both stages; the last thing yielded is the picture. Stop iterating to cancel."""
        yield from spared(lambda: self._both(what, base), self._lowered)

    def _lowered(self) -> bool:
        """Forget the models and keep less of the next ones in memory; False where there is no less."""
        tiers = {model.residence.tier for model in self.models.values()} | ({self.memory} & {*TIERS})
        lower = lower_tier(max(tiers, key=TIERS.index, default=TIERS[0]))
        self.models.clear()
        self.control_nets.clear()
        torch.cuda.empty_cache()
        self.memory = lower or self.memory
        return lower is not None

    def _both(self, what: Scene | Plan, base: Path | None) -> Iterator[Step | Picture]:
        scene = what if isinstance(what, Scene) else what.scene
        method = METHODS[scene.method.name]
        job = self.resolve(scene, base)
        if method.draw_layout is None:
            yield from self._render(job, None)
            return
        plan = what if isinstance(what, Plan) else None
        if plan is not None:
            check_regions(plan.regions, self._phrases(job), plan.layout)
        for event in () if plan else self._plan(job):
            if isinstance(event, Plan):
                plan = event
            else:
                yield event
        yield from self._render(job, plan)

    def plan(self, scene: Scene, base: Path | None = None) -> Plan:
        """The layout and who stands where. Raises RegionError if the layout does not show the cast."""
        return last(self.plan_steps(scene, base), Plan)

    def render(self, what: Scene | Plan, base: Path | None = None) -> Picture:
        """The finished picture of a scene, or of a plan that was made (and perhaps edited) before."""
        return last(self.render_steps(what, base), Picture)

    def _plan(self, job: Job) -> Iterator[Step | Plan]:
        scene, model = job.scene, self.model(job.scene.model, job.base, job.scene.checkpoint)
        draw = METHODS[scene.method.name].draw_layout
        if draw is None:
            raise SceneError(f"method: {scene.method.name} has no layout to plan; use two_stage")
        segment = self._segmenter(scene, model, job.base)
        began = time.perf_counter()
        layout = yield from draw(model, job, scheduler_of(scene.scheduler, model.scheduler))
        drawn = time.perf_counter()
        phrases = self._phrases(job)
        found = segment(layout, list(phrases.values()))
        assert scene.lowest_score is not None, "a scene is settled before it is drawn"
        limits = Limits(lowest_score=scene.lowest_score)
        regions = assign(scene.cast, phrases, found, layout, limits=limits, base=job.base)
        seconds = {"layout": drawn - began, "segment": time.perf_counter() - drawn}
        yield Plan(scene, layout, regions, seconds)

    @staticmethod
    def _phrases(job: Job) -> dict[str, str]:
        """What a segmenter looks for, by member in prompt order."""
        classes = class_names(job.scene, job.concepts)
        return {name: job.scene.cast[name].segment_phrase or word for name, word in classes.items()}

    def _segmenter(self, scene: Scene, model: Model, base: Path | None) -> Segmenter:
        """The scene's segmenter; a model of its that is a folder may lie beside the scene."""
        chosen, machine = scene.segmenter, self._machine
        if chosen is None:
            return SEGMENTERS[model.facts.segmenter](machine)
        options = chosen.model_dump(exclude={"name"}, exclude_none=True)
        for part in {"detector", "sam", "model"} & options.keys():
            here = (base or Path()) / Path(options[part]).expanduser()
            options[part] = str(here) if here.is_dir() else options[part]
        return SEGMENTERS[chosen.name](machine, **options)

    @property
    def _machine(self) -> Machine:
        return Machine(self.settings.builtin, self.device, self.dtype, self.settings.offline)

    def _render(self, job: Job, plan: Plan | None) -> Iterator[Step | Picture]:
        scene, model = job.scene, self.model(job.scene.model, job.base, job.scene.checkpoint)
        method, scheduler = METHODS[scene.method.name], scheduler_of(scene.scheduler, model.scheduler)
        began = time.perf_counter()
        rows = at_once = 0
        steps: Generator[Step, None, Tensor]
        if plan is not None and method.personalise is not None:
            steps = method.personalise(model, replace(plan, scene=scene), job, scheduler)
        elif method.sample is not None:
            steps = method.sample(model, job, scheduler)
        else:
            raise SceneError(f"method: {scene.method.name} needs a plan")
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                latent: Tensor = done.value
                break
            rows, at_once = step.rows, step.at_once
            yield step
        personalised = time.perf_counter()
        image = model.decode(latent)
        load, self.load_seconds = self.load_seconds, 0.0  # told once, by the picture that waited for it
        seconds = {
            "load": load,
            **(plan.seconds if plan else {"layout": 0.0, "segment": 0.0}),
            "personalise": personalised - began,
            "decode": time.perf_counter() - personalised,
        }
        yield Picture(
            image=image,
            scene=scene,
            plan=plan,
            hashes=hashes_of(job, model, plan),
            rows={"stage1": plan.layout.rows if plan else 0, "stage2": rows},
            seconds=seconds,
            versions=versions_of(model, scheduler),
            notes=job.notes,
            fits=job.fits,
            memory=model.residence.tier,
            max_rows=at_once,
            lost=self._lost(job, model, plan, image),
        )

    def _lost(self, job: Job, model: Model, plan: Plan | None, image: Image.Image) -> tuple[str, ...]:
        """Who of the plan cannot be seen; the built-in world's segmenter alone is quick enough to be asked again."""
        chosen = job.scene.segmenter.name if job.scene.segmenter else model.facts.segmenter
        if plan is None or chosen != "world":
            return ()
        seen = SEGMENTERS[chosen](self._machine)(
            replace(plan.layout, image=image), [region.class_name for region in plan.regions.values()]
        )
        return lost_members(plan.regions, seen)


def open_studio(
    device: str | None = None,
    dtype: str | None = None,
    *,
    library: Path | None = None,
    max_rows: int | None = None,
    memory: str | None = None,
    offline: bool | None = None,
) -> Studio:
    """A studio on a device; what is not given comes from the settings.

    auto is cuda with bfloat16 where torch sees a GPU, else the CPU with float32; under a launcher each
    process has a GPU of its own. Raises ModelError where the device that was asked for is not there.
    """
    given = {"library": library, "max_rows": max_rows, "memory": memory, "offline": offline}
    settings = machine_settings(**{name: value for name, value in given.items() if value is not None})
    wanted, kind = device or settings.device, dtype or settings.dtype
    for name, value, allowed in (("device", wanted, ("auto", "cpu", "cuda")), ("dtype", kind, ("auto", *DTYPES))):
        if value not in allowed:
            raise ModelError(f"{name} {value!r}: want one of {', '.join(allowed)}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda': torch sees no CUDA device here; use --device cpu, or install a CUDA build")
    on_gpu = wanted != "cpu" and torch.cuda.is_available()
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if kind == "auto":
        kind = "bfloat16" if chosen.type == "cuda" else "float32"
    return Studio(chosen, DTYPES[kind], settings, settings.max_rows, settings.memory)
