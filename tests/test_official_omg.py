"""Every case captured from the official OMG pipeline, number by number.

The cases of tests/golden/omg, or of the folder that COSTARS_GOLDEN names (laid out in the same way; what it lacks is
taken from tests/golden). A case that states anything that this test does not understand fails.
"""

import json
import os
import re
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from costars.methods.omg import stages
from costars.methods.omg.stages import draw_layout, personalise
from costars.methods.paths import global_path, member_adapter, member_path
from costars.scene.prompt_syntax import escape_brackets
from costars.scene.scene import parse_scene
from costars.studio import open_studio
from costars.types import Plan, Region

GOLDEN = Path(__file__).resolve().parent / "golden"
FOLDER = Path(os.environ.get("COSTARS_GOLDEN", GOLDEN / "omg")).resolve()
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors") if path.with_suffix(".json").is_file())
CASES = [case for case in CASES if "settings" in json.loads((FOLDER / f"{case}.json").read_text())]
CELL = 8  # px of a latent cell
ATTENTION_CELLS_PX = (16, 32)  # cells of the layers that have attention, in SDXL
# Largest absolute differences from the captured numbers.
TEXT, LATENT, NOISE, DECODED = 1e-5, 2e-4, 1e-4, 1e-4

# Every field of a case. RECORDED says how the numbers were captured; it does not change them.
RECORDED = {"case", "versions", "deterministic_rerun_equal", "checks", "times", "tensors"}
STATED = {
    "timesteps", "time_ids", "settings", "controller", "lora_scale", "blend", "adapter_names",
    "style_weights", "controlnet_conditioning_scale", "guidance_scale", "num_inference_steps", "scheduler_class",
    "scheduler_config", "counts",
}  # fmt: skip
WITH_SIGMAS = {"EulerDiscreteScheduler"}  # schedulers whose noise levels are stated too
SETTINGS = {
    "prompt", "negative_prompt", "region_prompts", "loras", "style", "spatial_condition", "seed", "steps", "cfg",
    "scheduler", "controller_wh", "size", "masks",
}  # fmt: skip
CONTROLLER = {"width", "height", "num_att_layers", "table_steps", "cross_replace", "self_replace_steps"}
SCHEDULER_CONFIG = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "timestep_spacing", "steps_offset")
CALLERS = {"base_unet", "concept_unet", "controlnet"}
CAPTURED_STEPS = {0, 10, 15, 16, 17, 20}  # of every case, and others
# Stage 2 of the other cases of tests/golden ends with step LAST_STEP, to save time: by then all that they state has
# taken effect. Cases of another folder are whole.
LAST_STEP = max(CAPTURED_STEPS)
WHOLE = {"b_overlap_192", "j_controller_too_small_192"} if FOLDER == GOLDEN / "omg" else set(CASES)


@dataclass(frozen=True)
class Case:
    """One official call: what was asked and the numbers that came out.

    names are those of the regions, in order: region, LoRA and mask belong together by position, as in the official
    code. first is the first step with blended noise.
    """

    told: dict
    numbers: dict
    names: tuple[str, ...]
    first: int

    @property
    def settings(self):
        return self.told["settings"]

    @property
    def masks(self):
        """{name: file} of the regions that are called; a region without a mask takes no part."""
        files = [*self.settings["masks"], *[None] * len(self.names)][: len(self.names)]
        return {name: file for name, file in zip(self.names, files, strict=True) if file is not None}

    @property
    def holes(self):
        """Masks without a region: the official code leaves zero noise inside them."""
        return [file for file in self.settings["masks"][len(self.names) :] if file is not None]


def understand(told, numbers):
    """A case whose every field is understood; fails otherwise."""
    settings, controller, steps = told["settings"], told["controller"], told["settings"]["steps"]
    stated = STATED | ({"sigmas"} if told["scheduler_class"] in WITH_SIGMAS else set())
    assert told.keys() - RECORDED == stated, told.keys() - RECORDED ^ stated
    assert settings.keys() == SETTINGS, settings.keys() ^ SETTINGS
    assert controller.keys() == CONTROLLER, controller.keys() ^ CONTROLLER
    regions = split_regions(settings)
    assert len(settings["loras"]) == len(regions)
    assert told["adapter_names"] == [Path(lora).stem for lora in settings["loras"]]
    blend = re.fullmatch(r"i > (\d+) \(stage 2\)", told["blend"])
    assert blend, told["blend"]
    case = Case(told, numbers, tuple(f"m{k}" for k in range(len(regions))), int(blend[1]) + 1)
    assert steps == told["num_inference_steps"] == len(told["timesteps"])
    assert settings["cfg"] == told["guidance_scale"]
    height, width = (int(v) for v in told["time_ids"][:2])
    assert told["time_ids"] == [height, width, 0, 0, height, width]
    assert sorted(settings["size"]) == sorted((height, width))
    default = [height // 32, width // 32]
    assert sorted((controller["width"], controller["height"])) == sorted(settings["controller_wh"] or default)
    assert controller["cross_replace"] == 1.0 and controller["self_replace_steps"][0] == 0
    assert (settings["style"] is None) == (told["style_weights"] is None)
    assert (settings["spatial_condition"] is None) == (told["controlnet_conditioning_scale"] is None)
    assert count_calls(case) == told["counts"]
    return case


def count_calls(case):
    """UNet and ControlNet calls and rows of an official run as we understand it."""
    steps, calls = case.settings["steps"], len(case.masks) * (case.settings["steps"] - case.first)
    counts = {"base_unet": {"calls": 2 * steps, "rows": 8 * steps}}
    if case.settings["spatial_condition"]:
        counts["controlnet"] = counts["base_unet"]
    return counts | ({"concept_unet": {"calls": calls, "rows": 2 * calls}} if calls else {})


def split_regions(settings):
    """[(prompt, negative prompt)] of "[prompt]-*-[negative]|..."."""
    parts = [re.fullmatch(r"\[(.*)\]-\*-\[(.*)\]", part) for part in settings["region_prompts"].split("|")]
    assert parts and all(parts), settings["region_prompts"]
    return [part.groups() for part in parts]


def find(kind, name):
    """A file of the case's folder, or of tests/golden."""
    found = [path for path in (FOLDER / kind / name, GOLDEN / "omg" / kind / name, GOLDEN / name) if path.exists()]
    assert found, f"{FOLDER / kind / name} does not exist"
    return found[0]


def finest_replaced_cell(controller, size):
    """The finest layer whose self-attention is replaced: one of no more queries than the controller has cells."""
    limit = controller["width"] * controller["height"]
    fitting = [px for px in ATTENTION_CELLS_PX if -(-size[0] // px) * -(-size[1] // px) <= limit]
    return fitting[0] if fitting else None


def state_call(studio, case):
    """The official call as a resolved scene.

    A scene has one slot for each member, the official call has a prompt of its own: so the scene's prompt is replaced
    by it, and no member's class has to be among its nouns. Members' class words have no effect here.
    """
    told, settings, steps = case.told, case.settings, case.settings["steps"]
    own, styled = told["style_weights"] or (1.0, None)
    cast = {
        name: {
            "concept": str(find("loras", lora)),
            "class_name": "figure",
            "weight": told["lora_scale"] * own,
            "prompt": escape_brackets(prompt),
            "negative_prompt": escape_brackets(negative),
        }
        for name, lora, (prompt, negative) in zip(case.names, settings["loras"], split_regions(settings), strict=True)
    }
    height, width = (int(v) for v in told["time_ids"][:2])
    cell = finest_replaced_cell(told["controller"], (width, height))
    method = {
        "name": "two_stage",
        "overlap": "sum",
        "own_words_share": 0.0,
        "other_words_share": 0.0,
        "cross_replace_steps": told["controller"]["cross_replace"],
        "self_replace_steps": told["controller"]["self_replace_steps"][1] / steps if cell else 0.0,
    }
    data = {
        "prompt": " ".join(f"{{{name}}}" for name in case.names),
        "cast": cast,
        "negative_prompt": escape_brackets(settings["negative_prompt"]),
        "force_zeros_for_empty_prompt": False,  # the official code encodes an empty one
        "model": str(find("", "tiny-sdxl")),
        "method": method | ({"self_attention_cell_px": cell} if cell else {}),
        "scheduler": settings["scheduler"],
        "size": (width, height),
        "steps": steps,
        "guidance_scale": settings["cfg"],
        "start": case.first / steps,
        "seed": settings["seed"],
    }
    if settings["style"]:
        scale = told["lora_scale"]
        style = {"concept": str(find("loras", settings["style"])), "weight": scale, "member_weight": scale * styled}
        data["style"] = style
    if settings["spatial_condition"]:
        image = str(find("masks", settings["spatial_condition"]))
        scale = told["controlnet_conditioning_scale"]
        data["controls"] = [{"model": str(find("", "controlnet")), "image": image, "scale": scale}]
    return replace(studio.resolve(parse_scene(data)), prompt=escape_brackets(settings["prompt"]))


def official_mask(name):
    """A mask as the official code reads it: the first pixel of every cell."""
    with Image.open(find("masks", name)) as image:
        inside = np.asarray(image.convert("L")) > 127
    cells = inside[::CELL, ::CELL].astype(np.float32)
    return np.kron(cells, np.ones((CELL, CELL), dtype=np.float32))


class Compared:
    """Compares numbers of ours with captured ones, and knows which have not been compared."""

    def __init__(self, numbers):
        self.numbers, self.left = numbers, set(numbers)

    def same(self, name, ours, tolerance, rows=slice(None)):
        theirs = self.numbers[name][rows].float()
        assert ours.shape == theirs.shape, name
        assert torch.isfinite(theirs).all(), name
        worst = float((ours.float() - theirs).abs().max())
        assert worst <= tolerance, f"{name}: {worst:.2e}"
        self.left.discard(name)

    def same_text(self, owner, path):
        for kind, text in (("", path.text), ("negative_", path.negative)):
            self.same(f"{owner}.{kind}prompt_embeds", text.tokens, TEXT)
            self.same(f"{owner}.{kind}pooled_prompt_embeds", text.pooled, TEXT)

    def leave_out(self, pattern):
        """Numbers that cannot be compared, for a stated reason."""
        self.left -= {name for name in self.left if re.fullmatch(pattern, name)}


def captured_steps(case, stage, stop=None):
    """The steps before stop whose latents were captured: those of CAPTURED_STEPS in every case, and perhaps more."""
    found = {int(m[1]) for key in case.numbers if (m := re.fullmatch(rf"{stage}\.latents\.(\d+)", key))}
    assert found >= CAPTURED_STEPS, CAPTURED_STEPS - found
    return sorted(i for i in found if stop is None or i < stop)


def layout_inputs(case):
    """Everything that stage 1 depends on, as text."""
    told = {k: case.told[k] for k in ("scheduler_class", "time_ids", "lora_scale", "controlnet_conditioning_scale")}
    told |= {key: case.told["scheduler_config"][key] for key in SCHEDULER_CONFIG}
    keys = ("prompt", "negative_prompt", "style", "spatial_condition", "seed", "steps", "cfg", "scheduler")
    return json.dumps([told, {key: case.settings[key] for key in keys}])


def compare_sampler(case, resolved):
    """The scheduler, its settings and its noise levels are those of the official run."""
    sampler = stages.make_sampler(resolved)
    scheduler, told = sampler.scheduler, case.told
    assert type(scheduler).__name__ == told["scheduler_class"]
    assert {key: scheduler.config[key] for key in SCHEDULER_CONFIG} == {
        key: told["scheduler_config"][key] for key in SCHEDULER_CONFIG
    }
    assert np.allclose(scheduler.timesteps.numpy(), told["timesteps"], atol=1e-3)
    if "sigmas" in told:
        assert np.allclose(scheduler.sigmas.numpy(), told["sigmas"], rtol=1e-5)


def record_noise(monkeypatch):
    """The noise before and after blending, step by step."""
    noises, blend = [], stages.blend_noise

    def recorded(noise, shares):
        noises.append((noise.clone(), blend(noise, shares)))
        return noises[-1][1]

    monkeypatch.setattr(stages, "blend_noise", recorded)
    return noises


def compare_step(compared, case, step, noises, layout, latents):
    """One step's input and noise: rows [uncond A, uncond B, cond A, cond B], A the layout, B the picture."""
    name = f"stage2.step{step:02d}"
    before, after = noises[step - case.first]
    global_noise, member_noise = before[0], before[1:]
    scale = (case.told["sigmas"][step] ** 2 + 1) ** -0.5 if "sigmas" in case.told else 1.0
    rows = torch.cat([layout.latents[step : step + 1], latents[step - 1]]) * scale
    compared.same(f"{name}.latent_model_input", rows.repeat(2, 1, 1, 1), LATENT)
    compared.same(f"{name}.noise_pred_before_blend", global_noise, NOISE, slice(1, None, 2))
    compared.same(f"{name}.noise_pred_after_blend", after, NOISE, slice(1, None, 2))
    called = [k for k, file in enumerate(case.masks.values()) if official_mask(file).any()]
    for k, noise in zip(called, member_noise, strict=True):
        compared.same(f"{name}.concept_eps.{k}", noise, NOISE)
    for k in set(range(len(case.masks))) - set(called):
        compared.leave_out(rf"{name}\.concept_eps\.{k}")  # its mask has no cell, so its noise is not used


@pytest.fixture(scope="module")
def studio():
    return open_studio("cpu", "float32")


@pytest.fixture(scope="module")
def drawn():
    """{what a layout is drawn from: (layout, final latent)}: several cases have the same."""
    return {}


def load_case(name):
    return understand(json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors"))


def test_there_are_cases():
    assert CASES, f"no cases in {FOLDER}; set COSTARS_GOLDEN to a folder with captured numbers, or leave it unset"


@pytest.mark.parametrize("name", CASES)
def test_both_stages_equal_the_official_code(studio, drawn, finish, monkeypatch, name):
    case = load_case(name)
    compared, steps = Compared(case.numbers), case.settings["steps"]
    resolved = state_call(studio, case)
    compare_sampler(case, resolved)
    assert len(resolved.model.unet.attn_processors) == case.told["controller"]["num_att_layers"]
    assert list(resolved.members) == list(case.names)

    compared.same_text("global", global_path(resolved, resolved.prompt))
    for k, member in enumerate(resolved.members.values()):
        compared.same_text(f"region{k}", member_path(resolved, member, member_adapter(resolved, member)))

    inputs = layout_inputs(case)
    if inputs not in drawn:
        layout, step = finish(draw_layout(resolved))
        drawn[inputs] = layout, step.latent
    layout, final = drawn[inputs]
    for stage in ("stage1", "stage2"):
        compared.same(f"{stage}.initial_latents", layout.latents[:1], LATENT)
    for i in captured_steps(case, "stage1"):
        compared.same(f"stage1.latents.{i:02d}", layout.latents[i + 1 : i + 2].expand(2, -1, -1, -1), LATENT)
    compared.same("stage1.final_latents", final.expand(2, -1, -1, -1), LATENT)

    masks = {member: official_mask(file) for member, file in case.masks.items()}
    regions = {member: Region("figure", mask, 1.0, 0) for member, mask in masks.items() if mask.any()}
    latents = {i: layout.latents[i + 1 : i + 2] for i in range(case.first)}
    noises = record_noise(monkeypatch)
    stop = steps if name in WHOLE else LAST_STEP + 1
    with closing(personalise(resolved, Plan(resolved.scene, layout, regions))) as taken:
        for step in islice(taken, stop - case.first):
            latents[step.index] = step.latent
    assert list(latents) == list(range(stop)) and len(noises) == stop - case.first

    if case.holes:
        compare_hole(compared, case, layout, latents, noises)
    else:
        for i in captured_steps(case, "stage2", stop):
            both = torch.cat([layout.latents[i + 1 : i + 2], latents[i]])
            compared.same(f"stage2.latents.{i:02d}", both, LATENT)
        if stop == steps:
            compared.same("stage2.final_latents", torch.cat([final, latents[steps - 1]]), LATENT)
        for step in {int(m[1]) for key in case.numbers if (m := re.match(r"stage2\.step(\d+)\.", key))}:
            compare_step(compared, case, step, noises, layout, latents)
    if stop < steps:
        compared.leave_out(r"stage2\.(latents\.[345]\d|final_latents|decoded.*)")
    pictures = {"stage1.decoded.rowA": final}
    pictures |= dict.fromkeys(("stage2.decoded.rowB", "stage2.decoded"), latents[max(latents)])
    for key in pictures.keys() & compared.left:
        with torch.no_grad():
            decoded = resolved.model.vae.decode(pictures[key] / resolved.model.vae.config["scaling_factor"]).sample
        compared.same(key, decoded, DECODED, slice(-1, None))
    assert not compared.left, f"never compared: {sorted(compared.left)}"


def compare_hole(compared, case, layout, latents, noises):
    """A mask without a region: the official noise is zero inside it, ours is the global noise."""
    for i in captured_steps(case, "stage2", len(latents)):
        rows = slice(None) if i < case.first else slice(0, 1)
        both = torch.cat([layout.latents[i + 1 : i + 2], latents[i]])
        compared.same(f"stage2.latents.{i:02d}", both[rows], LATENT, rows)
    compared.same("stage2.final_latents", layout.latents[-1:], LATENT, slice(0, 1))
    hole = np.max([official_mask(file)[::CELL, ::CELL] for file in case.holes], axis=0) > 0
    for name in case.masks.values():
        hole &= official_mask(name)[::CELL, ::CELL] == 0
    assert hole.any()
    blended = [key for key in case.numbers if key.endswith(".noise_pred_after_blend")]
    assert blended
    for key in blended:
        assert case.numbers[key][1::2, :, torch.from_numpy(hole)].abs().max() == 0
    for before, after in noises:
        inside = torch.from_numpy(hole)
        assert torch.equal(before[0][..., inside], after[..., inside])
    compared.leave_out(r"stage2\.step\d+\..*|stage2\.decoded.*")  # they follow from the official hole


def told_of(**changes):
    """The first case of tests/golden/omg with some of its fields, or those of its settings, changed."""
    told = json.loads((GOLDEN / "omg" / "b_overlap_192.json").read_text())
    for key, value in changes.items():
        (told["settings"] if key in SETTINGS else told)[key] = value
    return told


def region_prompts(*prompts):
    return "|".join(f"[{prompt}]-*-[ugly]" for prompt in prompts)


def test_three_members_need_no_nouns_in_the_prompt(studio):
    """A man and a woman in the prompt, and three members, two of them of one LoRA."""
    prompts = ("photo of a man smiling", "photo of a woman (smiling)", "photo of a dog")
    told = told_of(
        region_prompts=region_prompts(*prompts),
        loras=["char_a.safetensors", "char_b.safetensors", "char_a.safetensors"],
        adapter_names=["char_a", "char_b", "char_a"],
        masks=["m192_left.png", None, "m192_right.png"],
    )
    case = understand(told, {})
    assert list(case.masks) == ["m0", "m2"] and not case.holes
    resolved = state_call(studio, case)
    assert resolved.prompt == told["settings"]["prompt"] == "photo of a man and a woman in the forest"
    assert [escape_brackets(prompt) for prompt in prompts] == [m.prompt for m in resolved.members.values()]
    layout_text = global_path(resolved, resolved.prompt).text
    assert torch.equal(layout_text.tokens, resolved.model.encode_text(told["settings"]["prompt"]).tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"eta": 0.5},
        {"blend": "i > 15 and i < 40 (stage 2)"},
        {"region_prompts": "[a man]"},
        {"loras": ["char_a.safetensors"]},
        {"adapter_names": ["char_b", "char_a"]},
        {"cfg": 5.0},
        {"num_inference_steps": 30},
        {"time_ids": [192.0, 192.0, 0.0, 8.0, 192.0, 192.0]},
        {"controller_wh": [3, 3]},
        {"masks": ["m192_left.png", None]},  # the counted calls are those of two members
        {"spatial_condition": "cond192.png"},
        {"style": "style_kohya.safetensors"},
    ],
)
def test_a_case_that_is_not_understood_fails(changes):
    understand(told_of(), {})
    with pytest.raises(AssertionError):
        understand(told_of(**changes), {})


def test_numbers_that_are_not_compared_are_known():
    compared = Compared({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)})
    compared.same("a", torch.zeros(2), 0)
    with pytest.raises(AssertionError, match=r"b: 1\.00e\+00"):
        compared.same("b", torch.ones(2), 0.5)
    assert compared.left == {"b", "c"}
