"""From a resolved scene to a plan, and from a plan to a picture: generators that yield every step."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import replace

from PIL import Image
from torch import Tensor

from costars.builtin.segmenter import CLASSES, KINDS
from costars.catalog import load_method
from costars.errors import SceneError
from costars.records.provenance import check_same_layout_files, file_hashes, layout_hashes, versions
from costars.resolved_scene import ResolvedScene
from costars.sample.decode import decode_latent
from costars.segment.mask_files import has_mask_file
from costars.segment.match_cast import match_cast, usable_regions
from costars.segment.region_checks import RegionLimits
from costars.segment.visibility import Visibility, describe_extra_figures, find_extra_figures, judge_visibility
from costars.types import Picture, Plan, Segmenter, Step


def plan_scene(resolved: ResolvedScene, segmenter: Segmenter | None) -> Iterator[Step | Plan]:
    """Stage 1 step by step; the last thing yielded is the plan.

    segmenter is None where no member needs one (see `needs_segmenter`). Raises SceneError for a method without a
    layout, RegionError where the layout does not show the cast.
    """
    draw_layout = load_method(resolved.scene.method.name).draw_layout
    if draw_layout is None:
        raise SceneError(f"method: {resolved.scene.method.name} has no layout to plan; use two_stage")
    began = time.perf_counter()
    layout = yield from draw_layout(resolved)
    drawn = time.perf_counter()
    phrases = {name: member.phrase for name, member in resolved.members.items()}
    found = [] if segmenter is None else segmenter(layout, list(phrases.values()))
    limits = RegionLimits(lowest_score=resolved.lowest_score)
    regions = match_cast(resolved.scene.cast, phrases, found, layout, limits=limits)
    seconds = {"layout": drawn - began, "segment": time.perf_counter() - drawn}
    extra_figures = tuple(f.class_name for f in find_extra_figures(regions, usable_regions(found, {}, limits)))
    yield Plan(resolved.scene, layout, regions, seconds, extra_figures=extra_figures, hashes=layout_hashes(resolved))


def needs_segmenter(resolved: ResolvedScene) -> bool:
    """Whether a member has no mask file, so that its region must be found."""
    return not all(has_mask_file(member) for member in resolved.scene.cast.values())


def render_plan(
    resolved: ResolvedScene, plan: Plan | None, check: Segmenter | None = None, load_seconds: float = 0.0
) -> Iterator[Step | Picture]:
    """Stage 2 of a plan, or a method without one, step by step; the last thing yielded is the picture.

    check is a segmenter of the built-in world, which tells who is visible in the picture; load_seconds is what
    loading took before. The picture's plan is without the layout's cached attention. Raises SceneError for a method
    that needs a plan and has none, and where the layout's files have changed.
    """
    if plan is not None:
        check_same_layout_files(plan, resolved)
    model = resolved.model
    began = time.perf_counter()
    latent, rows, rows_per_call = yield from _count_rows(_denoising_steps(resolved, plan))
    denoised = time.perf_counter()
    image, decode_notes = decode_latent(model, latent)
    if plan is not None:
        plan = replace(plan, layout=replace(plan.layout, attention={}))
    visibility, notes = _judge(plan, image, check)
    seconds = {
        "load": load_seconds,
        **(plan.seconds if plan else {"layout": 0.0, "segment": 0.0}),
        "personalise": denoised - began,
        "decode": time.perf_counter() - denoised,
    }
    yield Picture(
        image=image,
        scene=resolved.scene,
        plan=plan,
        hashes=file_hashes(resolved, plan),
        rows={"stage1": plan.layout.rows if plan else 0, "stage2": rows},
        seconds=seconds,
        versions=versions(resolved),
        notes=tuple(dict.fromkeys((*resolved.notes, *(plan.layout.notes if plan else ()), *decode_notes, *notes))),
        layer_counts=resolved.layer_counts,
        memory=model.offload.tier,
        max_rows=rows_per_call,
        lost=visibility.lost,
        seen_as=visibility.seen_as,
    )


def _denoising_steps(resolved: ResolvedScene, plan: Plan | None) -> Generator[Step, None, Tensor]:
    method = load_method(resolved.scene.method.name)
    if plan is not None and method.personalise is not None:
        return method.personalise(resolved, replace(plan, scene=resolved.scene))
    if method.sample is not None:
        return method.sample(resolved)
    raise SceneError(f"method: {resolved.scene.method.name} needs a plan")


def _count_rows(steps: Generator[Step, None, Tensor]) -> Generator[Step, None, tuple[Tensor, int, int]]:
    """Yield the steps; return the final latent, the UNet rows in all, and the most rows of one call."""
    rows = rows_per_call = 0
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            return done.value, rows, rows_per_call
        rows, rows_per_call = step.rows, max(rows_per_call, step.rows_per_call)
        yield step


def _judge(plan: Plan | None, image: Image.Image, check: Segmenter | None) -> tuple[Visibility, tuple[str, ...]]:
    """Who of the plan is visible in the picture, and notes on the plan and on figures that are not in the cast."""
    if plan is None:
        return Visibility(), ()
    if check is None:
        return Visibility(), (*plan.notes, *describe_extra_figures("layout", plan.extra_figures, len(plan.regions)))
    figures = check(replace(plan.layout, image=image), CLASSES)
    extra_figures = [figure.class_name for figure in find_extra_figures(plan.regions, figures)]
    notes = (*plan.notes, *describe_extra_figures("picture", extra_figures, len(plan.regions)))
    return judge_visibility(plan.regions, figures, KINDS), notes
