"""OMG's two stages: a layout with strangers, then every identity in its place (ECCV 2024)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from costars.errors import RegionError, SceneError
from costars.methods.encode import sampler_of, size_px
from costars.methods.omg.attention import keeping, members_words, rule_of, stretches
from costars.methods.paths import stage1_path, stage2_paths, style_adapter
from costars.model.lora import one_adapter_per_row
from costars.model.model import Model
from costars.model.schedulers import history
from costars.sample.attention_rules import RecordWords, both
from costars.sample.batch import positions_in
from costars.sample.loop import Sampler, denoise
from costars.sample.mask_blending import blended, cell_masks, with_rest
from costars.scene.options import TwoStage
from costars.scene.scene import Scene
from costars.types import AttentionRule, Job, Layout, Path, Plan, Region, Step

WORD_CELL_PX, WORD_LEAST_PX = 32, 512


def draw_layout(model: Model, job: Job, scheduler: object) -> Generator[Step, None, Layout]:
    """Stage 1: the scene with class words only; keeps every step's latent and the words' attention."""
    scene = job.scene
    _check_rows(model, scene)
    method = scene.method
    assert isinstance(method, TwoStage)
    members_words(model, job)  # a prompt without them is found out before anything is drawn
    with model.reading():
        path = stage1_path(model, job)
    steps = sampler_of(model, scene, scheduler)
    latents, rows = [steps.noise(model)], 0
    size = model.latent_size(steps.size_px)
    tokens = word_tokens(steps.size_px)
    words = RecordWords(row=0, columns=_columns(path), size=size, tokens=tokens, even=tokens is None)
    of = len(steps.timesteps)
    keep = keeping(method, model, first_step(scene, of), of)
    rule = words if keep is None else both(keep, words)
    for step in _stage1(model, job, path, steps, latents[0], rule):
        latents.append(step.latent)
        rows = step.rows
        yield step
    image = model.decode(latents[-1])
    kept = {} if keep is None else keep.kept
    return Layout(image, torch.cat(latents), words.means(), path.text.prompt, rows, kept)


def _stage1(
    model: Model, job: Job, path: Path, steps: Sampler, latent: Tensor, rule: AttentionRule | None = None
) -> Generator[Step, None, None]:
    with model.drawing(job.controls), one_adapter_per_row(model.unet, "unet.", style_adapter(job)) as adapters:
        yield from denoise(
            model, latent, [path], steps, rule=rule, adapters=adapters, controls=job.controls, stage="layout"
        )


def _check_rows(model: Model, scene: Scene) -> None:
    method = scene.method
    if model.max_rows == 1 and isinstance(method, TwoStage) and method.layout_strength > 0:
        raise SceneError(
            "max_rows 1: the layout's row and the one that borrows its attention must be in one call; "
            "use at least 2, or 0 for no bound, or method.layout_strength=0"
        )


def word_tokens(size_px: tuple[int, int]) -> int | None:
    """Queries of the layers that say where words are; None where all layers of a small picture must serve.

    One cell of 32 px: 16 x 16 of SD 1.5's 512 px, where words are known to be found best (Hertz et al. 2022),
    and 32 x 32 of SDXL's 1024 px.
    """
    width, height = size_px
    if min(size_px) < WORD_LEAST_PX:
        return None
    return -(-width // WORD_CELL_PX) * -(-height // WORD_CELL_PX)


def _columns(path: Path) -> dict[str, list[int]]:
    """Token positions of every occurrence of a word, under "word 0", "word 1", ..."""
    return {
        f"{word} {i}": positions_in([path], path.text, span)
        for word, spans in path.text.spans.items()
        for i, span in enumerate(spans)
    }


def personalise(model: Model, plan: Plan, job: Job, scheduler: object) -> Generator[Step, None, Tensor]:
    """Stage 2: from the layout's own latent at the start step, with one more path per concept.

    Before that step nothing differs from stage 1, so nothing is computed for it. The layout's
    conditional row runs beside the others on its stored latents, and the global path borrows its
    attention (OMG section 3.3); the paths' noise is blended by the masks (Eq. 6).
    """
    scene, method = job.scene, job.scene.method
    assert isinstance(method, TwoStage)
    _check_rows(model, scene)
    size = size_px(model, scene)
    latents = plan.layout.latents.to(model.device, model.dtype)
    shares = with_rest(_shares(plan, method, model.latent_size(size))).to(model.device)
    with model.reading():
        paths, adapters = stage2_paths(model, job, plan.layout.prompt, plan.regions, latents)
    words, kept = members_words(model, job), plan.layout.attention
    of = len(latents) - 1
    start = first_step(scene, of)
    latent = latents[start : start + 1]
    runs = stretches(method, paths, start, of, kept)
    steps, used = _sampler(model, job, scheduler, latents, start)
    with model.drawing(job.controls), one_adapter_per_row(model.unet, "unet.", adapters) as row_adapters:
        for some, first, stop in runs:
            mixed = denoise(
                model,
                latent,
                some,
                replace(steps, start=first, stop=stop),
                combine=lambda noise: blended(noise, shares),
                rule=rule_of(method, size, some, words, shares[1:], kept),
                adapters=row_adapters,
                controls=job.controls,
                stage="personalise",
            )
            before = used
            for step in mixed:
                latent, used = step.latent, before + step.rows
                yield replace(step, rows=used)
    return latent


def _sampler(model: Model, job: Job, scheduler: object, latents: Tensor, start: int) -> tuple[Sampler, int]:
    """A sampler that stands at start as stage 1 left it, and the UNet rows that took.

    A scheduler that remembers must have seen the steps before: they are taken again on stage 1's latents.
    """
    seen = history(scheduler, start)
    if not seen:
        return sampler_of(model, job.scene, scheduler, start), 0
    first = start - seen
    steps = sampler_of(model, job.scene, scheduler, first)
    with model.reading():
        path = stage1_path(model, job)
    again = _stage1(model, job, path, replace(steps, stop=start), latents[first : first + 1])
    rows = max(step.rows for step in again)
    return replace(steps, start=start), rows


def first_step(scene: Scene, steps: int) -> int:
    """The first of so many steps in which identities take part."""
    assert scene.start is not None, "a scene is settled before it is drawn"
    return min(steps, round(scene.start * steps))


def _shares(plan: Plan, method: TwoStage, size: tuple[int, int]) -> Tensor:
    """(k, h, w) shares of the concepts' noise on the latent grid, in the cast's order."""
    if not method.blend or not plan.regions:
        return torch.zeros(0, *size)
    regions: Mapping[str, Region] = plan.regions
    by_depth = sorted(regions, key=lambda name: regions[name].depth)
    masks = [regions[name].mask for name in by_depth]
    shares = cell_masks(masks, size, method.feather_cells, disjoint=method.overlap == "front")
    for name, share in zip(by_depth, shares, strict=True):
        if not share.any():
            raise RegionError(
                f"{name}'s mask fills no cell of the latent grid ({size[1]} x {size[0]}), so {name} could not appear; "
                "give a larger mask, or a smaller depth if someone stands in front",
                plan.layout,
                tuple(regions.values()),
            )
    return torch.stack([shares[by_depth.index(name)] for name in regions])
