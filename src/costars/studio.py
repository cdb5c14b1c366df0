"""The public API: models in memory, scenes resolved, planned and rendered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from costars.catalog import load_method, load_segmenter
from costars.concepts.cache import ConceptCache
from costars.concepts.cast import load_concepts
from costars.concepts.library import Library
from costars.errors import ModelError, SceneError, TrainError
from costars.files.regular_file import is_there
from costars.files.safetensors_header import compute_sha256
from costars.model.controlnet import check_controlnet, load_control_image, load_controlnet
from costars.model.hub import COMPONENT_PATTERNS, PIPELINE_PATTERNS, Source, locate
from costars.model.load import load_model
from costars.model.model import Model
from costars.model.offload import FIRST_ROWS, TIERS, lower_tier, release_memory
from costars.model.precision import preferred_dtype
from costars.model.recently_used import RecentlyUsed
from costars.pipeline import needs_segmenter, plan_scene, render_plan
from costars.resolve import STYLE, check_files, concept_names, resolve_scene
from costars.resolved_scene import ResolvedScene
from costars.retry import last, retry_with_less_memory
from costars.scene.files import anchor_paths
from costars.scene.names import is_hub_id
from costars.scene.options import Checkpoint
from costars.scene.scene import BUILTIN, Scene
from costars.segment.region_checks import check_regions
from costars.settings import Settings, machine_settings
from costars.train.config import TrainConfig, anchor_config
from costars.train.data.captioning import load_captioner
from costars.train.data.check import check_image_folders
from costars.train.data.dataset import load_dataset
from costars.train.loop import train
from costars.train.recipe_settings import build_recipe
from costars.train.results import TrainingResult
from costars.train.task import TrainingTask
from costars.types import ControlNet, Machine, Picture, Plan, Segmenter, Step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How many a studio keeps: two models, to compare them or to go back and forth; a scene has rarely more ControlNets.
MAX_MODELS, MAX_CONTROL_NETS, MAX_SEGMENTERS = 2, 4, 2


@dataclass
class Studio:
    """Models in memory, one copy each, on one device.

    What was not used lately is dropped. A hub id is looked up once. memory_notes are lines for the user about what was
    lowered because memory ran out; it stays so, and every later picture has these notes.
    """

    device: torch.device
    dtype: torch.dtype
    settings: Settings
    max_rows: int = 0
    memory: str = "auto"
    models: RecentlyUsed[Source, Model] = field(default_factory=lambda: RecentlyUsed(MAX_MODELS))
    # By folder and memory tier, each with its sha256.
    control_nets: RecentlyUsed[tuple[Path, str], tuple[ControlNetModel, str]] = field(
        default_factory=lambda: RecentlyUsed(MAX_CONTROL_NETS)
    )
    segmenters: RecentlyUsed[str, Segmenter] = field(default_factory=lambda: RecentlyUsed(MAX_SEGMENTERS))
    load_seconds: float = 0.0
    concepts: ConceptCache = field(default_factory=ConceptCache)
    on_note: Callable[[str], None] = lambda note: None  # is called with the notes on a scene before it is drawn
    memory_notes: tuple[str, ...] = ()
    _hub_folders: dict[tuple[str, Sequence[str]], Path] = field(default_factory=dict, repr=False)

    @property
    def store(self) -> Library:
        """Where concepts are looked up."""
        settings = self.settings
        folders = settings.builtin / "concepts", settings.library, settings.concept_folders
        return Library(*folders, cache=self.concepts)

    def model(self, name: str, checkpoint: Checkpoint | None = None) -> Model:
        """The model of this name or path, loaded once.

        Raises ModelError if it is missing or incomplete.
        """
        source = self._source(name, checkpoint or Checkpoint())
        return self.models.get(source, partial(self._load_model, source))

    def _load_model(self, source: Source) -> Model:
        began = time.perf_counter()
        segmenter = "world" if source.name == BUILTIN else "attention"
        load = partial(load_model, source, self.device, self.dtype, self.max_rows, segmenter, self.memory)
        model = load()
        if self.memory == "auto" and model.offload.tier != TIERS[0] and len(self.models):
            del model  # the others' room may be what it lacks
            self.models.clear()
            self.control_nets.clear()
            release_memory()
            model = load()
        self.load_seconds += time.perf_counter() - began
        return model

    def _source(self, name: str, checkpoint: Checkpoint) -> Source:
        vae, config = checkpoint.vae, checkpoint.config
        return Source(
            name,
            self.settings.builtin / "model" if name == BUILTIN else self._locate(name, "model", PIPELINE_PATTERNS),
            vae=None if vae is None else self._locate(vae, "checkpoint.vae", COMPONENT_PATTERNS),
            config=None if config is None else self._locate(config, "checkpoint.config", PIPELINE_PATTERNS),
            prediction=checkpoint.prediction,
            tiles=checkpoint.tiles,
        )

    def _locate(self, name: str, field: str, wanted: Sequence[str]) -> Path:
        find = partial(locate, name, offline=self.settings.offline, what=field, patterns=wanted)
        if not is_hub_id(name) or is_there(Path(name)):
            return find()
        if (name, wanted) not in self._hub_folders:
            self._hub_folders[name, wanted] = find()
        return self._hub_folders[name, wanted]

    def resolve(self, scene: Scene) -> ResolvedScene:
        """The scene with its model, concepts and ControlNets loaded; relative paths are in the working folder.

        Raises SceneError for a scene of several pictures, ConceptError for a concept that is missing, damaged, or
        made for another model.
        """
        if scene.count > 1:
            raise SceneError(f"count {scene.count}: one picture is drawn at a time; use each scene of scene.each()")
        scene = anchor_paths(scene, Path())
        check_files(scene)  # what can be checked without the model comes before it is loaded
        concepts = load_concepts(concept_names(scene), self.store)
        style = concepts.pop(STYLE, None)
        model = self.model(scene.model, scene.checkpoint)
        members = {name: concepts[f"cast.{name}"] for name in scene.cast}
        resolved = resolve_scene(scene, model, members, style)
        for note in resolved.notes:
            self.on_note(note)
        return replace(resolved, controls=self._load_controls(resolved))

    def _load_controls(self, resolved: ResolvedScene) -> tuple[ControlNet, ...]:
        controls, model = [], resolved.model
        for control in resolved.scene.controls:
            folder = self._locate(control.model, "controls.model", COMPONENT_PATTERNS)
            load = partial(_load_controlnet, folder, control.model, model)
            net, sha256 = self.control_nets.get((folder, model.offload.tier), load)
            check_controlnet(net, control.model, model)
            image = load_control_image(control.image, resolved.size_px, model)
            image_sha256 = compute_sha256(Path(control.image))
            controls.append(ControlNet(net, image, control.scale, control.start, control.end, sha256, image_sha256))
        return tuple(controls)

    def prepare_training(self, config: TrainConfig) -> TrainingTask:
        """The task of a config: its model loaded and its images read; relative paths are in the working folder.

        Raises TrainError for images, captions or settings that cannot be trained.
        """
        config = anchor_config(config, Path())
        check_image_folders(config)
        model = self.model(config.model, config.checkpoint)
        if model.offload.tier != TIERS[0]:
            raise TrainError(f"memory {model.offload.tier!r}: training needs the whole model; set COSTARS_MEMORY=full")
        recipe = build_recipe(config, model.info.family)
        describe = None
        if config.captioner is not None:
            describe = load_captioner(config.captioner, self.device, self.dtype, self.settings.offline)
        dataset = load_dataset(config, recipe, describe)
        return TrainingTask(model, dataset.subjects, recipe, dataset.skipped)

    def train(self, config: TrainConfig) -> TrainingResult:
        """Train the concepts of a config; `train.loop.train` of `prepare_training(config)` yields every step."""
        return last(train(self.prepare_training(config)), TrainingResult)

    def plan_steps(self, scene: Scene) -> Iterator[Step | Plan]:
        """Stage 1 step by step; the last thing yielded is the plan."""
        for event in retry_with_less_memory(lambda: self._plan(self.resolve(scene)), self._lower_memory):
            if isinstance(event, Plan):
                notes = self._with_memory_notes(event.layout.notes)
                yield replace(event, layout=replace(event.layout, notes=notes))
            else:
                yield event

    def render_steps(self, source: Scene | Plan) -> Iterator[Step | Picture]:
        """Both stages step by step; the last thing yielded is the picture. Stop iterating to cancel."""
        plans: list[Plan] = []  # where memory runs out in stage 2, stage 1 is not drawn again
        for event in retry_with_less_memory(lambda: self._render(plans[-1] if plans else source), self._lower_memory):
            if isinstance(event, Plan):
                plans.append(event)
            elif isinstance(event, Picture):
                yield replace(event, notes=self._with_memory_notes(event.notes))
            else:
                yield event

    def plan(self, scene: Scene) -> Plan:
        """The layout and the region of each member. Raises RegionError if the layout does not show the cast."""
        return last(self.plan_steps(scene), Plan)

    def render(self, source: Scene | Plan) -> Picture:
        """The finished picture of a scene, or of a plan that was made (and perhaps edited) before."""
        return last(self.render_steps(source), Picture)

    def _with_memory_notes(self, notes: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*notes, *self.memory_notes)))

    def _plan(self, resolved: ResolvedScene) -> Iterator[Step | Plan]:
        return plan_scene(resolved, self._open_segmenter(resolved) if needs_segmenter(resolved) else None)

    def _render(self, source: Scene | Plan) -> Iterator[Step | Plan | Picture]:
        plan = source if isinstance(source, Plan) else None
        resolved = self.resolve(source.scene if isinstance(source, Plan) else source)
        if load_method(resolved.scene.method.name).draw_layout is None:
            plan = None
        elif plan is not None:
            check_regions(plan.regions, {name: m.phrase for name, m in resolved.members.items()}, plan.layout)
        else:
            for event in self._plan(resolved):
                plan = event if isinstance(event, Plan) else None
                yield event
        load_seconds, self.load_seconds = self.load_seconds, 0.0  # reported once, by the first picture
        yield from render_plan(resolved, plan, self._open_check(resolved), load_seconds)

    def _open_segmenter(self, resolved: ResolvedScene) -> Segmenter:
        chosen = resolved.scene.segmenter
        if chosen is None:
            return self._segmenter(resolved.model.info.segmenter)
        return self._segmenter(chosen.name, **chosen.model_dump(exclude={"name"}, exclude_none=True))

    def _segmenter(self, name: str, **options: Any) -> Segmenter:
        return self.segmenters.get(f"{name} {options}", lambda: load_segmenter(name)(self._machine, **options))

    def _open_check(self, resolved: ResolvedScene) -> Segmenter | None:
        """A segmenter that can tell who is visible in the picture; only the built-in world's is quick enough."""
        chosen = resolved.scene.segmenter
        name = chosen.name if chosen else resolved.model.info.segmenter
        return self._segmenter(name) if name == "world" else None

    @property
    def _machine(self) -> Machine:
        return Machine(self.settings.builtin, self.device, self.dtype, self.settings.offline)

    def _lower_memory(self) -> bool:
        """Fewer rows per UNet call, then the next lower memory tier, for good; False where nothing is left to lower.

        A CPU has no tiers: all of them are in its own memory.
        """
        self.segmenters.clear()
        if not 0 < self.max_rows <= FIRST_ROWS:
            self.max_rows = FIRST_ROWS
            self.models.update(lambda model: model.with_max_rows(FIRST_ROWS))
            lowered = f"at most {FIRST_ROWS} rows per UNet call"
        else:
            tiers = {model.offload.tier for model in self.models} | ({self.memory} & {*TIERS})
            lower = lower_tier(max(tiers, key=TIERS.index, default=TIERS[0]))
            if lower is None or self.device.type == "cpu":
                return False
            self.models.clear()
            self.control_nets.clear()
            self.memory = lower
            lowered = f"memory {lower!r}"
        release_memory()
        self.memory_notes += (f"memory ran out: {lowered} from now on, which is slower",)
        return True


def _load_controlnet(folder: Path, name: str, model: Model) -> tuple[ControlNetModel, str]:
    return load_controlnet(folder, name, model), compute_sha256(folder)


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

    auto is cuda where torch sees a GPU, else the CPU. dtype auto is bfloat16 on a GPU with units for it, float16 on
    an older one, and float32 on the CPU. Under a launcher each process has a GPU of its own. Raises ModelError where
    the device that was asked for is not there.
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
    number_format = preferred_dtype(chosen) if kind == "auto" else DTYPES[kind]
    return Studio(chosen, number_format, settings, settings.max_rows, settings.memory)
