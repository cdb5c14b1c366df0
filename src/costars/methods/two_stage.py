"""OMG's two stages: a layout with strangers, then every identity in its place (ECCV 2024)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from costars.errors import RegionError, SceneError
from costars.methods.prompts import class_names, everyone_prompt, global_prompt, member_prompt, own_tokens
from costars.methods.sampling import negative_text, sampler_of, size_px
from costars.model.adapters import concatenated, one_adapter_per_row, scaled, text_adapter
from costars.model.model import Model
from costars.sample.blend import blended, cell_masks, with_rest
from costars.sample.denoise import Sampler, denoise
from costars.sample.rules import BorrowLayout, OwnWords, RecordWords, both
from costars.scene import Scene, TwoStage
from costars.types import Adapter, AttentionRule, Concept, Job, Layout, Path, Plan, Step, Text

EVERYONE = "{}"  # the adapter of the whole cast; no member can have this name


def draw_layout(model: Model, job: Job, scheduler: object) -> Generator[Step, None, Layout]:
    """Stage 1: the scene with class words only; keeps every step's latent and the words' attention."""
    scene = job.scene
    _check_rows(model, scene)
    _members_words(model, scene, job.concepts)  # a prompt without them is found out before anything is drawn
    classes = class_names(scene, job.concepts)
    prompt = global_prompt(scene, classes)
    text = model.encode_text(prompt, sorted(set(classes.values())))
    path = Path("global", text, negative_text(model, scene))
    steps = sampler_of(model, scene, scheduler)
    latents, rows = [steps.noise(model)], 0
    words = RecordWords(row=0, columns=_columns(text), size=model.latent_size(steps.size_px))
    for step in denoise(model, latents[0], [path], steps, rule=words, stage="layout"):
        latents.append(step.latent)
        rows = step.rows
        yield step
    image = model.decode(latents[-1])
    return Layout(image, torch.cat(latents), words.means(), prompt, rows)


def _check_rows(model: Model, scene: Scene) -> None:
    method = scene.method
    if model.max_rows == 1 and isinstance(method, TwoStage) and method.layout_strength > 0:
        raise SceneError(
            "max_rows 1: the layout's row and the one that borrows its attention must be in one call; "
            "use at least 2, or 0 for no bound, or method.layout_strength=0"
        )


def _columns(text: Text) -> dict[str, list[int]]:
    """Token positions of every occurrence of a word, under "word 0", "word 1", ..."""
    return {
        f"{word} {i}": list(range(span.start, span.stop))
        for word, spans in text.spans.items()
        for i, span in enumerate(spans)
    }


def personalise(
    model: Model, plan: Plan, concepts: Mapping[str, Concept], scheduler: object
) -> Generator[Step, None, Tensor]:
    """Stage 2: from the layout's own latent at the start step, with one more path per concept.

    Before that step nothing differs from stage 1, so nothing is computed for it. The layout's
    conditional row runs beside the others on its stored latents, and the global path borrows its
    attention (OMG section 3.3); the paths' noise is blended by the masks (Eq. 6).
    """
    scene, method = plan.scene, plan.scene.method
    assert isinstance(method, TwoStage)
    _check_rows(model, scene)
    size = size_px(model, scene)
    adapters = _adapters(plan, concepts)
    latents = plan.layout.latents.to(model.device, model.dtype)
    shares = with_rest(_shares(plan, method, model.latent_size(size))).to(model.device)
    paths = _paths(model, plan, concepts, adapters, latents)
    tokens = _members_words(model, scene, concepts)
    own = {i: tokens[path.adapter] for i, path in enumerate(paths) if path.adapter in tokens}
    start = first_step(scene, len(latents) - 1)
    latent = latents[start : start + 1]
    steps, used = _sampler(model, plan, scheduler, latents, start)
    with one_adapter_per_row(model.unet, "unet.", adapters) as row_adapters:
        mixed = denoise(
            model,
            latent,
            paths,
            steps,
            combine=lambda noise: blended(noise, shares),
            rule=_rule(method, size, own, shares[1:]),
            adapters=row_adapters,
            stage="personalise",
        )
        for step in mixed:
            latent = step.latent
            yield replace(step, rows=used + step.rows)
    return latent


def _sampler(model: Model, plan: Plan, scheduler: object, latents: Tensor, start: int) -> tuple[Sampler, int]:
    """A sampler that stands at start as stage 1 left it, and the UNet rows that took.

    A multistep scheduler wants to have seen the steps before: they are taken again on stage 1's latents.
    """
    scene = plan.scene
    steps = sampler_of(model, scene, scheduler, start)
    if not steps.history or not start:
        return steps, 0
    first = max(0, start - steps.history)
    steps = sampler_of(model, scene, scheduler, first)
    path = Path("global", model.encode_text(plan.layout.prompt), negative_text(model, scene))
    again = denoise(model, latents[first : first + 1], [path], replace(steps, stop=start))
    rows = max(step.rows for step in again)
    return replace(steps, start=start), rows


def _adapters(plan: Plan, concepts: Mapping[str, Concept]) -> dict[str, Adapter]:
    """One adapter for each member, or, without blending, one that holds them all."""
    scene, method = plan.scene, plan.scene.method
    assert isinstance(method, TwoStage)
    own = {name: scaled(concepts[name].adapter, scene.cast[name].weight) for name in plan.regions}
    return own if method.blend else {EVERYONE: concatenated(list(own.values()))}


def _paths(
    model: Model, plan: Plan, concepts: Mapping[str, Concept], adapters: Mapping[str, Adapter], latents: Tensor
) -> list[Path]:
    """Layout replay, global, then one path for each concept with its own words."""
    scene, method = plan.scene, plan.scene.method
    assert isinstance(method, TwoStage)
    classes = class_names(scene, concepts)
    text = model.encode_text(plan.layout.prompt)
    paths = [Path("layout", text, replay=latents)] if method.layout_strength > 0 else []
    if EVERYONE in adapters:
        with text_adapter(model.encoders, adapters[EVERYONE]):
            text = model.encode_text(everyone_prompt(scene, classes, concepts))
            return [*paths, Path("global", text, negative_text(model, scene), adapter=EVERYONE)]
    paths.append(Path("global", text, negative_text(model, scene)))
    for name in plan.regions:
        not_words = scene.cast[name].negative_prompt
        with text_adapter(model.encoders, adapters[name]):
            own = model.encode_text(member_prompt(scene, name, classes, concepts[name]))
            negative = negative_text(model, scene, not_words)
        paths.append(Path(name, own, negative, adapter=name))
    return paths


def _members_words(model: Model, scene: Scene, concepts: Mapping[str, Concept]) -> dict[str, list[int]]:
    """Where each member's own words stand in its prompt; nothing where they may reach everywhere."""
    method = scene.method
    assert isinstance(method, TwoStage) and method.own_words_share is not None, "a scene is settled before it is drawn"
    if not method.own_words_share or not method.blend:
        return {}
    classes, tokenizer = class_names(scene, concepts), model.encoders.tokenizer
    return {name: own_tokens(tokenizer, scene, name, classes, concepts[name]) for name in classes}


def _rule(
    method: TwoStage, size_px: tuple[int, int], own: Mapping[int, list[int]], shares: Tensor
) -> AttentionRule | None:
    """The global row borrows from the layout's, and each member's own words (rows in own) keep to its share."""
    rules: list[AttentionRule] = []
    if method.layout_strength > 0:
        rules.append(_borrowing(method, size_px))
    if own:
        assert method.own_words_share is not None
        rules.append(OwnWords(own, dict(zip(own, shares, strict=True)), method.own_words_share))
    return reduce(both, rules) if rules else None


def _borrowing(method: TwoStage, size_px: tuple[int, int]) -> BorrowLayout:
    """The global row (1) borrows from the layout's (0), as far as the method's strength says."""
    width, height = size_px
    cell = method.self_attention_cell_px
    return BorrowLayout(
        source=0,
        target=1,
        cross_share=method.layout_strength,
        self_share=method.self_attention_share * method.layout_strength,
        self_tokens=(width // cell) * (height // cell),
    )


def first_step(scene: Scene, steps: int) -> int:
    """The first of so many steps in which identities take part."""
    assert scene.start is not None, "a scene is settled before it is drawn"
    return min(steps, round(scene.start * steps))


def _shares(plan: Plan, method: TwoStage, size: tuple[int, int]) -> Tensor:
    """(k, h, w) shares of the concepts' noise on the latent grid, in the cast's order."""
    if not method.blend or not plan.regions:
        return torch.zeros(0, *size)
    by_depth = sorted(plan.regions, key=lambda name: plan.regions[name].depth)
    masks = [plan.regions[name].mask for name in by_depth]
    shares = cell_masks(masks, size, method.feather_cells, disjoint=method.overlap == "front")
    for name, share in zip(by_depth, shares, strict=True):
        if not share.any():
            raise RegionError(
                f"{name}'s mask fills no cell of the latent grid ({size[1]} x {size[0]}), so {name} could not appear; "
                "give a larger mask, or a smaller depth if someone stands in front",
                plan.layout,
                tuple(plan.regions.values()),
            )
    return torch.stack([shares[by_depth.index(name)] for name in plan.regions])
