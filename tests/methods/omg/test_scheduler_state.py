"""Stage 2 continues a scheduler with memory from stage 1's state; steps that are taken again are counted."""

from dataclasses import replace

import pytest
import torch

from costars.methods.encode import make_sampler
from costars.methods.omg import stages
from costars.methods.omg.scheduler_state import restore_state
from costars.model.schedulers import SAMPLERS
from costars.resolve import resolve_scene

CPU = torch.device("cpu")
STEPS, START = 5, 0.5
# Steps that a plan from a file takes again, of two (heun and dpm2 take most steps in two).
AGAIN = dict.fromkeys(SAMPLERS, 2) | {"heun": 4, "dpm2": 4, "dpm2 a": 4, "plms": 3}
AGAIN |= dict.fromkeys(("ddim", "ddpm", "euler", "euler a", "lcm", "tcd"), 0)
AGAIN |= dict.fromkeys(("dpm", "dpm++ 2m", "dpm++ 2m sde", "dpm++ 2m sde heun"), 1)


@pytest.fixture
def called_rows(tiny):
    """The rows of every call of the UNet."""
    rows = []
    handle = tiny.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    handle.remove()


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_every_call_of_the_unet_is_counted_and_yielded(tiny, planned, concepts, called_rows, scheduler):
    plan = replace(planned(tiny, scheduler=scheduler, steps=STEPS, start=START), regions={})
    resolved, latents = resolve_scene(plan.scene, tiny, concepts), []
    for state, again in ((plan.layout.state, 0), (None, AGAIN[scheduler])):
        called_rows.clear()
        steps = list(stages.personalise(resolved, replace(plan, layout=replace(plan.layout, state=state))))
        first = round(START * steps[0].of)
        assert [(s.stage, s.index) for s in steps] == [
            *(("warm-up", i) for i in range(first - again, first)),
            *(("personalise", i) for i in range(first, steps[0].of)),
        ]
        assert [s.rows for s in steps] == torch.tensor(called_rows).cumsum(0).tolist()
        latents.append(steps[-1].latent)
    assert torch.equal(*latents)
    assert (plan.layout.state is None) == (AGAIN[scheduler] == 0)


def test_a_start_after_the_last_step_takes_no_step_again(tiny, planned, concepts, called_rows, finish):
    plan = planned(tiny, scheduler="unipc", steps=3, start=1.0)
    called_rows.clear()
    _, step = finish(stages.personalise(resolve_scene(plan.scene, tiny, concepts), plan))
    assert step is None and not called_rows


@pytest.mark.parametrize(
    ("changes", "fits"),
    [({}, True), ({"start": 0.2}, False), ({"steps": 4}, False), ({"scheduler": "dpm++ 2m karras"}, False)],
)
def test_a_state_of_other_steps_is_not_used(tiny, planned, concepts, make_scene, changes, fits):
    state = planned(tiny, scheduler="dpm++ 2m", steps=STEPS, start=START).layout.state
    scene = make_scene(**{"scheduler": "dpm++ 2m", "steps": STEPS, "start": START} | changes)
    resolved = resolve_scene(scene, tiny, concepts)
    sampler = make_sampler(resolved, stages.first_step(resolved.start, scene.steps))
    restored = restore_state(sampler, state, CPU)
    assert (restored is not None) == fits
    assert restore_state(sampler, state, torch.device("meta")) is None
    if restored is not None:
        assert restored.scheduler is not state.scheduler and restored.scheduler.step_index == 2
