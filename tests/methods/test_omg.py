"""OMG's two stages: equal to the official code, and nothing but the masks' insides is changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from costars.errors import SceneError
from costars.methods.multi_lora import method as multi_lora
from costars.methods.omg import attention, stages
from costars.methods.omg.stages import draw_layout, first_step
from costars.methods.prompts import own_tokens, word_tokens
from costars.resolve import resolve_scene
from costars.sample.attention_rules import TokenMask
from costars.types import Plan, RegionError

WORDS_AND_SHARES = {"own_words_share": 1.0, "cross_replace_steps": 0.8, "self_replace_steps": 0.32}
NO_LAYOUT_ATTENTION = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0}
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
APART = ((0.0, 0.0, 0.375, 1.0), (0.625, 0.25, 1.0, 1.0))


def personalise(model, plan, concepts):
    return stages.personalise(resolve_scene(plan.scene, model, concepts), plan)


def method(**options):
    return {"name": "two_stage", **options}


def test_both_stages_equal_the_official_code(tiny, golden, concepts, make_scene, make_region, finish, monkeypatch):
    told = load_file(golden / "two_stage.safetensors")
    cast = {
        "a": {"concept": "a", "weight": 0.8, "prompt": "photo of a man smiling in the forest"},
        "b": {"concept": "b", "weight": 0.8, "prompt": "photo of a woman with red hat in the forest"},
    }
    scene = make_scene(
        cast=cast, negative_prompt="noisy, blurry, soft, ugly", size=(256, 256), steps=50, guidance_scale=7.5, seed=14
    )
    layout, step = finish(draw_layout(resolve_scene(scene, tiny, concepts)))
    assert torch.allclose(layout.latents[:1], told["initial"], atol=1e-4, rtol=0)
    assert torch.allclose(layout.latents[11:12], told["stage1.after.10"], atol=2e-4, rtol=0)
    assert torch.allclose(step.latent, told["stage1.final"], atol=2e-4, rtol=0)
    assert layout.rows == 100
    regions = {}
    for name, file in (("a", "m256_left.png"), ("b", "m256_right.png")):
        mask = (np.asarray(Image.open(golden / file).convert("L")) > 127).astype(np.float32)
        regions[name] = replace(make_region(concepts[name].class_name, LEFT), mask=mask)
    # The official code samples masks at every eighth pixel where ours measures coverage.
    monkeypatch.setattr(
        stages, "make_cell_masks", lambda masks, *_, **__: torch.stack([torch.tensor(m[::8, ::8]) for m in masks])
    )
    latents = {}
    for step in personalise(tiny, Plan(scene, layout, regions), concepts):
        latents[step.index] = step.latent
    assert list(latents) == list(range(16, 50))
    assert torch.allclose(latents[20], told["stage2.after.20"], atol=2e-4, rtol=0)
    assert torch.allclose(latents[49], told["stage2.final"], atol=2e-4, rtol=0)
    assert step.rows == 34 * (3 + 2 * 2) == 238


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_rows_are_two_a_step_then_three_and_two_for_each_concept(
    tiny, concepts, make_region, make_scene, finish, count
):
    names = [f"m{i}" for i in range(count)]
    scene = make_scene(
        prompt=" and ".join(f"{{{n}}}" for n in names), cast={n: {"concept": "a"} for n in names}, start=0.3
    )
    own = dict.fromkeys(names, concepts["a"])
    layout, _ = finish(draw_layout(resolve_scene(scene, tiny, own)))
    regions = {n: make_region("man", (i / count, 0, (i + 1) / count, 1)) for i, n in enumerate(names)}
    _, step = finish(personalise(tiny, Plan(scene, layout, regions), own))
    assert layout.rows == 10 * 2
    assert step.rows == 7 * (3 + 2 * count)


@pytest.mark.parametrize(
    "scheduler",
    [
        *("ddim", "euler", "euler a", "lcm", "dpm", "dpm++ 2m sde", "unipc", "dpm++ 2m sde heun", "tcd", "euler beta"),
        *("dpm++ 2m beta", "unipc beta", "plms", "dpm2 a", "dpm++ sde", "dpm++ 2s"),
    ],
)
def test_replaying_the_layout_without_blending_is_the_layout(tiny_double, planned, concepts, finish, scheduler):
    """Also where the scheduler draws noise of its own, or remembers the steps before."""
    plan = planned(tiny_double, scheduler=scheduler, steps=25, start=0.32, method=method())
    plan = replace(plan, regions={})
    latent, step = finish(personalise(tiny_double, plan, concepts))
    steps = len(plan.layout.latents) - 1
    first = round(0.32 * steps)  # dpm2, dpm2 a and heun take each step in two
    assert latent.dtype is torch.float64 and step.rows == (steps - first) * 3
    assert torch.allclose(latent, plan.layout.latents[-1:], atol=1e-8 if scheduler == "ddim" else 1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "with_layout"),
    [({}, [8, 2]), (WORDS_AND_SHARES, [6, 2]), ({"self_replace_steps": 0.0}, [8, 0])],
)
def test_attention_that_was_kept_gives_the_picture_that_the_replay_gives(
    tiny_double, concepts, make_scene, make_region, finish, options, with_layout
):
    latents, rows = [], []
    for where in ("replay", "device"):
        scene = make_scene(method=method(**options, attention_cache=where), start=0.2)
        layout, _ = finish(draw_layout(resolve_scene(scene, tiny_double, concepts)))
        regions = {"a": make_region("man", LEFT), "b": make_region("woman", RIGHT, depth=1)}
        latent, step = finish(personalise(tiny_double, Plan(scene, layout, regions), concepts))
        latents.append(latent)
        rows.append(step.rows)
    assert torch.allclose(*latents, atol=1e-9)
    assert rows == [8 * 6 + steps for steps in with_layout]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "two_stage", "attention_cache": "device", "blend": False}}, "needs method.blend"),
        (
            {"start": 0.1, "method": {"name": "two_stage", "attention_cache": "device", "self_replace_steps": 0.0}},
            "same",
        ),
    ],
)
def test_attention_that_was_not_kept_is_said(tiny, concepts, make_scene, finish, changes, said):
    drawn = make_scene(start=0.5, method=method(attention_cache="device"))
    layout, _ = finish(draw_layout(resolve_scene(drawn, tiny, concepts)))
    scene = make_scene(**changes)
    with pytest.raises(SceneError, match=said):
        if "blend" in scene.method.model_fields_set:
            finish(draw_layout(resolve_scene(scene, tiny, concepts)))
        finish(personalise(tiny, Plan(scene, layout, {}), concepts))


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_without_guidance_the_rows_are_halved(tiny, planned, concepts, finish, guidance_scale):
    plan = planned(tiny, scheduler="lcm", steps=8, start=0.25, guidance_scale=guidance_scale)
    _, step = finish(personalise(tiny, plan, concepts))
    assert plan.layout.rows == 8 and step.rows == 6 * (2 + 2)


def test_prompts_of_several_lengths_stand_side_by_side(tiny_double, planned, concepts, finish):
    long = " ".join(["ugly"] * 100)
    plan = planned(
        tiny_double,
        method=method(own_words_share=1.0, **NO_LAYOUT_ATTENTION),
        negative_prompt=long,
    )
    assert plan.layout.latents.shape[0] == 11
    latent, step = finish(personalise(tiny_double, plan, concepts))
    split, _ = finish(personalise(tiny_double.with_max_rows(2), plan, concepts))
    assert step.rows == 7 * 6 and torch.allclose(latent, split, atol=1e-8)


@pytest.mark.parametrize("size", [(72, 64), (64, 88)])
def test_any_size_of_whole_cells_is_drawn(tiny, concepts, make_scene, make_region, finish, size):
    scene = make_scene(size=size, steps=4, method=method(own_words_share=1.0))
    layout, _ = finish(draw_layout(resolve_scene(scene, tiny, concepts)))
    assert layout.image.size == size and all(m.shape == (size[1] // 8, size[0] // 8) for m in layout.maps.values())
    regions = {n: make_region(c, b) for n, c, b in (("a", "man", LEFT), ("b", "woman", RIGHT))}
    mask = np.zeros((size[1], size[0]), dtype=np.float32)
    regions = {n: replace(r, mask=mask.copy()) for n, r in regions.items()}
    regions["a"].mask[:, : size[0] // 2], regions["b"].mask[:, size[0] // 2 :] = 1, 1
    latent, _ = finish(personalise(tiny, Plan(scene, layout, regions), concepts))
    assert latent.shape[-2:] == (size[1] // 8, size[0] // 8) and bool(latent.isfinite().all())


def test_on_one_path_from_the_first_step_without_the_layout_it_is_multi_lora(tiny_double, planned, concepts, finish):
    plan = planned(tiny_double, start=0.0, method=method(blend=False, **NO_LAYOUT_ATTENTION))
    latent, step = finish(personalise(tiny_double, plan, concepts))
    baseline, _ = finish(multi_lora.sample(resolve_scene(plan.scene, tiny_double, concepts)))
    assert torch.allclose(latent, baseline, atol=1e-8, rtol=0)
    assert step.rows == 2 * plan.scene.steps


def test_concepts_of_no_weight_with_the_scenes_own_words_change_nothing(tiny_double, planned, concepts, finish):
    cast = {n: {"concept": n, "weight": 0.0, "prompt": "photo of a man and a woman in the forest"} for n in "ab"}
    plan = planned(tiny_double, cast=cast)
    latent, _ = finish(personalise(tiny_double, plan, concepts))
    assert torch.allclose(latent, plan.layout.latents[-1:], atol=1e-6, rtol=0)


def test_the_first_step_changes_the_masks_inside_only(tiny_double, planned, concepts):
    plan = planned(tiny_double, boxes=((0, 0, 0.25, 0.5), (0.5, 0.5, 1, 1)))
    step = next(personalise(tiny_double, plan, concepts))
    moved = (step.latent - plan.layout.latents[step.index + 1]).abs().amax(dim=(0, 1))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:4, :2] = inside[4:, 4:] = True
    assert moved[~inside].max() < 1e-9
    assert moved[inside].min() > 1e-4


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("max_rows", [2, 3])
def test_max_rows_changes_nothing(tiny_double, planned, concepts, finish, max_rows, share):
    plan = planned(tiny_double, boxes=APART, method=method(own_words_share=share))
    whole, step = finish(personalise(tiny_double, plan, concepts))
    split, split_step = finish(personalise(tiny_double.with_max_rows(max_rows), plan, concepts))
    assert torch.allclose(split, whole, atol=1e-8, rtol=0)
    assert split_step.rows == step.rows


def test_one_row_at_a_time_cannot_borrow_attention_and_says_so(tiny, planned, concepts, finish):
    plan = planned(tiny)
    with pytest.raises(SceneError, match=r"max_rows 1: .* use at least 2, or 0 for no limit"):
        finish(personalise(tiny.with_max_rows(1), plan, concepts))


@pytest.mark.parametrize(
    ("option", "value", "rows"),
    [
        ("cross_replace_steps", 0.0, 1 * 7 + 6 * 6),  # the layout's row ends with the share of self-attention
        ("feather_cells", 1.0, 7 * 7),
        ("own_words_share", 1.0, 7 * 7),
        ("other_words_share", 1.0, 7 * 7),
        ("overlap", "sum", 7 * 7),
    ],
)
def test_each_option_decides_the_result(tiny, planned, concepts, finish, option, value, rows):
    plan = planned(tiny, boxes=((0.0, 0.0, 0.625, 1.0), (0.375, 0.25, 1.0, 1.0)))
    full, _ = finish(personalise(tiny, plan, concepts))
    changed = plan.scene.model_copy(update={"method": plan.scene.method.model_copy(update={option: value})})
    other, step = finish(personalise(tiny, replace(plan, scene=changed), concepts))
    assert (other - full).abs().max() > 1e-3
    assert step.rows == rows


def test_each_members_words_go_with_its_own_mask_whoever_is_in_front(tiny, planned, concepts, finish, monkeypatch):
    told = []

    def noted(reaches):
        told.append(reaches)
        return TokenMask(reaches)

    monkeypatch.setattr(attention, "TokenMask", noted)
    shares = method(own_words_share=0.75, other_words_share=0.5)
    plan = planned(tiny, boxes=APART, method=shares)
    resolved, tokenizer = resolve_scene(plan.scene, tiny, concepts), tiny.encoders[0].tokenizer
    behind = {name: replace(region, depth=1 - region.depth) for name, region in plan.regions.items()}
    for regions in (plan.regions, behind):
        finish(personalise(tiny, replace(plan, regions=regions), concepts))
        reaches = told.pop()
        assert list(reaches) == [3, 5]
        for row, member in zip((3, 5), resolved.members.values(), strict=True):
            own, others = reaches[row]
            (noun,) = {*resolved.nouns.values()} - {member.noun}
            assert own.tokens == own_tokens(tokenizer, resolved, member, {})
            assert others.tokens == word_tokens(tokenizer, member.prompt, [noun], {})
            assert set(own.tokens).isdisjoint(others.tokens) and (own.share, others.share) == (0.75, 0.5)
            assert torch.equal(others.part, 1 - own.part)
        parts = {row: reaches[row][0].part for row in reaches}
        assert parts[3][:, :3].all() and not parts[3][:, 3:].any()
        assert parts[5][2:, 5:].all() and not parts[5][:, :5].any()


def test_a_prompt_without_the_members_own_words_is_found_out_before_anything_is_drawn(tiny, concepts, make_scene):
    cast = {"a": {"concept": "a", "prompt": "photo of somebody"}, "b": {"concept": "b"}}
    scene = make_scene(cast=cast, method=method(own_words_share=1.0))
    with pytest.raises(SceneError, match=r"cast.a.prompt: 'photo of somebody' does not contain"):
        next(draw_layout(resolve_scene(scene, tiny, concepts)))


def test_identities_that_come_in_after_the_last_step_leave_the_layout(tiny, planned, concepts, finish):
    plan = planned(tiny, start=1.0)
    latent, step = finish(personalise(tiny, plan, concepts))
    assert step is None
    assert torch.equal(latent, plan.layout.latents[-1:])


@pytest.mark.parametrize(("steps", "start", "first"), [(50, 0.32, 16), (20, 0.32, 6), (3, 0.0, 0), (3, 1.0, 3)])
def test_the_start_is_a_share_of_the_steps(steps, start, first):
    assert first_step(start, steps) == first


def test_the_layout_keeps_every_latent_and_where_each_word_looked(tiny, planned):
    plan = planned(tiny, prompt="{a} next to {b}, who is a woman")
    layout = plan.layout
    assert layout.prompt == "a man next to a woman, who is a woman"
    assert layout.latents.shape == (11, 4, 8, 8) and layout.image.size == (64, 64)
    assert sorted(layout.maps) == ["man 0", "woman 0", "woman 1"]
    assert all(m.shape == (8, 8) and m.min() < 0 < m.max() for m in layout.maps.values())  # evened


def test_a_picture_without_guidance_has_one_row_for_each_path(tiny, planned, concepts, finish):
    plan = planned(tiny, guidance_scale=1.0, start=0.5)
    _, step = finish(personalise(tiny, plan, concepts))
    assert (plan.layout.rows, step.rows) == (10, 5 * (2 + 2))


def test_nothing_is_left_on_the_model_also_when_the_loop_is_stopped(tiny, planned, concepts, finish, trace):
    parts = (tiny.unet, *(e.module for e in tiny.encoders))
    before = [trace(p) for p in parts]
    plan = planned(tiny)
    steps = personalise(tiny, plan, concepts)
    next(steps)
    steps.close()
    assert [trace(p) for p in parts] == before
    finish(personalise(tiny, plan, concepts))
    assert [trace(p) for p in parts] == before


def test_a_member_whose_mask_reaches_no_cell_is_an_error_never_an_unchanged_figure(tiny, planned, concepts, finish):
    plan = planned(tiny, boxes=(LEFT, (0.55, 0.0, 0.59, 1.0)))
    assert plan.regions["b"].area > 0.008
    with pytest.raises(RegionError, match="b"):
        finish(personalise(tiny, plan, concepts))


@pytest.mark.parametrize("name", ["global", "layout"])
def test_a_member_may_have_any_name(tiny, planned, concepts, finish, name):
    plain = planned(tiny)
    expected, _ = finish(personalise(tiny, plain, concepts))
    own = {name: concepts["a"], "b": concepts["b"]}
    cast = {name: plain.scene.cast["a"], "b": plain.scene.cast["b"]}
    prompt = f"photo of {{{name}}} and {{b}} in the forest"
    scene = plain.scene.model_copy(update={"prompt": prompt, "cast": cast})
    plan = replace(plain, scene=scene, regions={name: plain.regions["a"], "b": plain.regions["b"]})
    latent, _ = finish(personalise(tiny, plan, own))
    assert torch.allclose(latent, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "tokens"), [((128, 128), None), ((512, 512), 256), ((1024, 1024), 1024), ((1024, 520), 32 * 17)]
)
def test_words_are_looked_for_in_cells_of_32_px(size, tokens):
    assert stages.word_map_tokens(size) == tokens
