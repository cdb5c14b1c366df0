"""OMG's two stages: a layout without identities, then each identity in its place (ECCV 2024)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from costars.errors import SceneError
from costars.methods.encode import make_sampler
from costars.methods.omg.attention import (
    attention_cache,
    denoising_segments,
    limited_words,
    stage2_rule,
)
from costars.methods.omg.options import TwoStage
from costars.methods.omg.scheduler_state import restore_state, save_state
from costars.methods.paths import (
    EVERYONE,
    everyone_adapter,
    everyone_path,
    global_path,
    member_adapter,
    member_path,
    style_adapter,
)
from costars.model.lora import one_adapter_per_row
from costars.model.offload import MicroBatcher
from costars.model.schedulers import count_warmup_steps
from costars.resolved_scene import ResolvedScene
from costars.sample.attention_rules import chain_rules
from costars.sample.decode import decode_latent
from costars.sample.loop import Sampler, denoise
from costars.sample.mask_blending import add_global_share, blend_noise, make_cell_masks
from costars.sample.word_maps import RecordWordMaps
from costars.types import Adapter, AttentionRule, DenoisingPath, Layout, Plan, RegionError, Step

# Word maps are read from layers whose cells are this large, in pictures of at least this size: 16 x 16 cells of
# SD 1.5's 512 px, where words are located best (Hertz et al. 2022), and 32 x 32 of SDXL's 1024 px.
WORD_CELL_PX, WORD_LEAST_PX = 32, 512


def draw_layout(resolved: ResolvedScene) -> Generator[Step, None, Layout]:
    """Stage 1: draw the scene with class words only; record every latent and the words' attention."""
    _check_max_rows(resolved)
    limited_words(resolved)  # raises before anything is drawn
    model = resolved.model
    with model.text_encoders_on_device():
        path = _layout_path(resolved)
    sampler = make_sampler(resolved)
    latents, rows = [sampler.noise(model)], 0
    tokens = word_map_tokens(sampler.size_px)
    size = model.latent_size(sampler.size_px)
    words = RecordWordMaps(
        row=0,
        columns=_word_columns(path),
        size=size,
        tokens=tokens,
        standardize=tokens is None,
        text_tokens=path.text.tokens.shape[1],
    )
    of = len(sampler.timesteps)
    start, state = first_step(resolved.start, of), None
    cache = attention_cache(resolved, start, of)
    rule = words if cache is None else chain_rules(cache, words)
    for step in _draw_stage1(resolved, path, sampler, latents[0], rule):
        latents.append(step.latent)
        rows = step.rows
        if step.index + 1 == start:
            state = save_state(sampler, start, model.device)
        yield step
    decoded = decode_latent(model, latents[-1])
    return Layout(
        image=decoded.image,
        latents=torch.cat(latents),
        maps=words.means(),
        prompt=path.text.prompt,
        rows=rows,
        attention={} if cache is None else cache.cached,
        state=state,
        notes=decoded.notes,
    )


def personalise(resolved: ResolvedScene, plan: Plan) -> Generator[Step, None, Tensor]:
    """Stage 2: from the layout's own latent at the start step, with one more path per member.

    Before that step nothing differs from stage 1, so nothing is computed for it. The layout's conditional row runs
    beside the others on its stored latents, and the global path uses its attention (OMG section 3.3); the paths'
    noise is blended by the masks (Eq. 6).
    """
    _check_max_rows(resolved)
    _check_layout(resolved, plan.layout)
    model, options = resolved.model, resolved.options
    latents = plan.layout.latents.to(model.device, model.latent_dtype)
    shares = add_global_share(_member_shares(plan, options, model.latent_size(resolved.size_px))).to(model.device)
    with model.text_encoders_on_device():
        paths, adapters = stage2_paths(resolved, plan, latents)
    words, cached = limited_words(resolved), plan.layout.attention
    of = len(latents) - 1
    start = first_step(resolved.start, of)
    latent = latents[start : start + 1]
    segments = denoising_segments(options, paths, start, of, cached)
    sampler, used = yield from _sampler_after_stage1(resolved, plan.layout, latents, start)
    micro_batcher = MicroBatcher(model.max_rows, model.device)
    with model.unet_on_device(resolved.controls), one_adapter_per_row(model.unet, "unet.", adapters) as row_adapters:
        for segment in segments:
            steps = denoise(
                model,
                latent,
                segment.paths,
                replace(sampler, start=segment.first, stop=segment.stop),
                combine=lambda noise: blend_noise(noise, shares),
                rule=stage2_rule(resolved, segment, words, shares[1:]),
                adapters=row_adapters,
                controls=resolved.controls,
                stage="personalise",
                micro_batcher=micro_batcher,
            )
            before = used
            for step in steps:
                latent, used = step.latent, before + step.rows
                yield replace(step, rows=used)
    return latent


def stage2_paths(
    resolved: ResolvedScene, plan: Plan, latents: Tensor
) -> tuple[list[DenoisingPath], dict[str, Adapter]]:
    """The layout's replay, the global path, then one path for each member; and the adapters that they name.

    latents (s + 1, c, h, w) are the layout's.
    """
    adapters, whole = style_adapter(resolved), global_path(resolved, plan.layout.prompt)
    layout = replace(whole, name="layout", negative=None, replay=latents)
    paths = [layout] if uses_layout_attention(resolved.options) else []
    if not resolved.options.blend:
        everyone = everyone_adapter(resolved)
        return [*paths, everyone_path(resolved, everyone)], {**adapters, EVERYONE: everyone}
    paths.append(whole)
    for name in plan.regions:
        member = resolved.members[name]
        adapters[name] = member_adapter(resolved, member)
        paths.append(member_path(resolved, member, adapters[name]))
    return paths, adapters


def uses_layout_attention(options: TwoStage) -> bool:
    """Whether stage 2 replaces any attention by the layout's."""
    return max(options.cross_replace_steps, options.self_replace_steps) > 0


def first_step(start: float, of: int) -> int:
    """The first of so many steps in which identities take part."""
    return min(of, round(start * of))


def word_map_tokens(size_px: tuple[int, int]) -> int | None:
    """Queries of the layers that the word maps are read from; None to use all layers of a small picture."""
    width, height = size_px
    if min(size_px) < WORD_LEAST_PX:
        return None
    return -(-width // WORD_CELL_PX) * -(-height // WORD_CELL_PX)


def _layout_path(resolved: ResolvedScene) -> DenoisingPath:
    """The global path with class words only, in the scene's style."""
    return global_path(resolved, resolved.prompt, sorted(set(resolved.nouns.values())))


def _draw_stage1(
    resolved: ResolvedScene,
    path: DenoisingPath,
    sampler: Sampler,
    latent: Tensor,
    rule: AttentionRule | None = None,
    stage: str = "layout",
) -> Generator[Step, None, None]:
    model, controls = resolved.model, resolved.controls
    with model.unet_on_device(controls), one_adapter_per_row(model.unet, "unet.", style_adapter(resolved)) as adapters:
        yield from denoise(model, latent, [path], sampler, rule=rule, adapters=adapters, controls=controls, stage=stage)


def _check_max_rows(resolved: ResolvedScene) -> None:
    if resolved.model.max_rows == 1 and uses_layout_attention(resolved.options):
        raise SceneError(
            "max_rows 1: the layout's row and the global row, which uses its attention, must be in one UNet call; "
            "use at least 2, or 0 for no limit, or set method.cross_replace_steps=0 and method.self_replace_steps=0"
        )


def _check_layout(resolved: ResolvedScene, layout: Layout) -> None:
    """Raises SceneError for a layout that was not drawn by this model, in this size and these steps."""
    model, steps = resolved.model, len(make_sampler(resolved).timesteps)
    want = (steps + 1, model.info.latent_channels, *model.latent_size(resolved.size_px))
    if tuple(layout.latents.shape) != want or layout.image.size != resolved.size_px:
        raise SceneError(
            f"the plan's layout has latents {tuple(layout.latents.shape)} and a picture of {layout.image.size} px; "
            f"{steps} steps of this model give {want} and {resolved.size_px}; plan the scene again"
        )


def _word_columns(path: DenoisingPath) -> dict[str, list[int]]:
    """Token positions of each occurrence of a word, under "word 0", "word 1", ..."""
    return {f"{word} {i}": [*span] for word, spans in path.text.spans.items() for i, span in enumerate(spans)}


class _Continuation(NamedTuple):
    """A sampler in the state that stage 1 left at the start step, and the UNet rows that this took."""

    sampler: Sampler
    rows: int


def _sampler_after_stage1(
    resolved: ResolvedScene, layout: Layout, latents: Tensor, start: int
) -> Generator[Step, None, _Continuation]:
    """A scheduler with memory has the state of stage 1, or takes the steps before again, on stage 1's latents.

    They are taken again where the plan is from a file, or was drawn with another start.
    """
    sampler = make_sampler(resolved, start)
    seen = count_warmup_steps(resolved.scheduler, start) if start < sampler.stop else 0
    restored = restore_state(sampler, layout.state, resolved.model.device)
    if restored is not None or not seen:
        return _Continuation(restored or sampler, 0)
    first, rows = start - seen, 0
    sampler = make_sampler(resolved, first)
    with resolved.model.text_encoders_on_device():
        path = _layout_path(resolved)
    again = _draw_stage1(resolved, path, replace(sampler, stop=start), latents[first : first + 1], stage="warm-up")
    for step in again:
        rows = step.rows
        yield step
    return _Continuation(replace(sampler, start=start), rows)


def _member_shares(plan: Plan, options: TwoStage, size: tuple[int, int]) -> Tensor:
    """(k, h, w) shares of the members' noise on the latent grid, in the order of the plan's regions."""
    if not options.blend or not plan.regions:
        return torch.zeros(0, *size)
    regions = plan.regions
    by_depth = sorted(regions, key=lambda name: regions[name].depth)
    masks = [regions[name].mask for name in by_depth]
    shares = make_cell_masks(masks, size, options.feather_cells, disjoint=options.overlap == "front")
    for name, share in zip(by_depth, shares, strict=True):
        if not share.any():
            raise RegionError(
                f"{name}'s mask fills no cell of the latent grid ({size[1]} x {size[0]}), so {name} could not appear; "
                "give a larger mask, or a smaller depth if another member stands in front",
                plan.layout,
                tuple(regions.values()),
            )
    return torch.stack([shares[by_depth.index(name)] for name in regions])
