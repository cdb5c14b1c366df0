"""The loop: one UNet call for all paths, equal to diffusers' pipeline on a single one."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from costars.model import offload
from costars.model.schedulers import make_scheduler
from costars.sample.batch import make_rows
from costars.sample.loop import denoise, prepare_sampler
from costars.types import DenoisingPath, Text

SIZE = (64, 64)
CPU = torch.device("cpu")


def text(value: float) -> Text:
    return Text("", torch.full((1, 3, 4), float(value)), torch.full((1, 2), float(value)))


class CountingUnet:
    """Predicts in every row the mean of its text, and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[torch.Tensor] = []

    def __call__(self, sample, t, tokens, added_cond_kwargs):
        self.calls.append(sample)
        return SimpleNamespace(sample=tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(sample))


def stub(max_rows: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        unet=CountingUnet(),
        max_rows=max_rows,
        size_ids=lambda size_px: torch.zeros(1, 6),
        device=CPU,
        dtype=torch.float32,
    )


def first(noise):
    return noise[0]


def run(model, paths, combine=first, steps=4, start=0, guidance_scale=3.0):
    plan = prepare_sampler(DDIMScheduler(set_alpha_to_one=False), steps, CPU, SIZE, guidance_scale, start=start)
    return denoise(model, torch.zeros(1, 4, 2, 2), paths, plan, combine=combine)


@pytest.mark.parametrize(("scheduler", "guidance_scale"), [("euler", 5.0), ("ddim", 5.0), ("euler", 1.0), ("dpm", 5.0)])
def test_a_single_path_equals_the_pipeline_of_diffusers(tiny, pipeline, scheduler, guidance_scale):
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler)
    noise = tiny.initial_noise(SIZE, 3)
    expected = pipeline(
        "a man in the forest",
        negative_prompt="blurry",
        latents=noise,
        width=64,
        height=64,
        num_inference_steps=10,
        guidance_scale=guidance_scale,
        output_type="latent",
    ).images
    plan = prepare_sampler(make_scheduler(scheduler, tiny.scheduler), 10, CPU, SIZE, guidance_scale, seed=3)
    negative = tiny.encode_text("blurry") if guidance_scale > 1 else None
    path = DenoisingPath("global", tiny.encode_text("a man in the forest"), negative)
    *_, step = denoise(tiny, plan.noise(tiny), [path], plan)
    assert torch.allclose(step.latent, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("max_rows", "sizes"), [(0, [7]), (3, [3, 3, 1]), (2, [2, 2, 2, 1]), (9, [7])])
def test_all_rows_go_in_one_call_that_max_rows_splits(max_rows, sizes):
    model = stub(max_rows)
    replay = DenoisingPath("layout", text(9), replay=torch.zeros(5, 4, 2, 2))
    pairs = [DenoisingPath(name, text(1), text(0)) for name in ("global", "a", "b")]
    step = next(run(model, [replay, *pairs]))
    assert [len(call) for call in model.unet.calls] == sizes
    assert step.rows == 7


@pytest.mark.parametrize(("free", "sizes"), [(1000, [2, 7, 7]), (500, [2, 4, 3, 4, 3])])
def test_rows_of_every_call_that_counts_are_equal_and_those_of_the_measurement_are_counted(monkeypatch, free, sizes):
    """On a GPU with this many free bytes, where a row takes 100."""
    monkeypatch.setattr(offload, "free_bytes", lambda device: free)
    monkeypatch.setattr(offload, "_allocated_bytes", lambda device: 0)
    monkeypatch.setattr(offload, "_peak_bytes", lambda device: 100 * offload.FIRST_ROWS)
    paths = [DenoisingPath("layout", text(9), replay=torch.zeros(5, 4, 2, 2))]
    paths += [DenoisingPath(name, text(1), text(0)) for name in ("global", "a", "b")]
    model = stub()
    measured = list(run(model, paths, steps=2))
    assert [len(call) for call in model.unet.calls] == sizes
    assert [step.rows for step in measured] == [9, 16] and {step.rows_per_call for step in measured} == {max(sizes)}
    monkeypatch.undo()
    model = stub(measured[0].rows_per_call)
    again = list(run(model, paths, steps=2))
    assert [len(call) for call in model.unet.calls] == sizes[1:]
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(measured, again, strict=True))


@pytest.mark.parametrize("max_rows", [0, 1, 2, 3])
def test_combine_sees_every_path_in_order_with_the_unconditional_half_first(max_rows):
    seen = []
    paths = [
        DenoisingPath("layout", text(9), replay=torch.zeros(5, 4, 2, 2)),
        *(DenoisingPath(name, text(10 + i), text(i)) for i, name in enumerate(("global", "a", "b"))),
    ]

    def combine(noise):
        seen.append(noise[:, :, 0, 0, 0].tolist())
        return noise[0]

    next(run(stub(max_rows), paths, combine))
    assert seen == [[[0, 10], [1, 11], [2, 12]]]


def test_guidance_goes_from_the_unconditional_noise_past_the_conditional_one():
    (once,) = run(stub(), [DenoisingPath("global", text(2), text(1))], steps=1, guidance_scale=3.0)
    (direct,) = run(stub(), [DenoisingPath("global", text(1 + 3 * (2 - 1)))], steps=1)
    assert torch.allclose(once.latent, direct.latent)
    assert (once.rows, direct.rows) == (2, 1)


def test_a_replayed_row_follows_its_stored_latents():
    model = stub()
    stored = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 2, 2)
    list(
        run(
            model, [DenoisingPath("layout", text(0), replay=stored), DenoisingPath("global", text(1), text(0))], start=1
        )
    )
    assert [call[0, 0, 0, 0].item() for call in model.unet.calls] == [1, 2, 3]


def test_steps_are_counted_from_the_start_to_the_end():
    steps = list(run(stub(), [DenoisingPath("global", text(1), text(0))], steps=5, start=2))
    assert [(s.index, s.of, s.rows) for s in steps] == [(2, 5, 2), (3, 5, 4), (4, 5, 6)]


def test_the_pair_that_a_rule_compares_comes_first():
    layout = DenoisingPath("layout", text(9), replay=torch.zeros(5, 4, 2, 2))
    rows = make_rows([layout, *(DenoisingPath(n, text(1), text(0)) for n in ("global", "a"))])
    named = [(r.path.name, r.conditional) for r in rows]
    assert named[:2] == [("layout", True), ("global", True)]
    assert sorted(named[2:]) == [("a", False), ("a", True), ("global", False)]


def test_the_models_own_scheduler_is_not_moved(tiny):
    before = dict(vars(tiny.scheduler))
    plan = prepare_sampler(tiny.scheduler, 3, CPU, SIZE, 1.0)
    list(denoise(tiny, torch.zeros(1, 4, 8, 8), [DenoisingPath("g", tiny.encode_text("a man"))], plan))
    assert plan.scheduler is not tiny.scheduler
    assert all(vars(tiny.scheduler)[key] is value for key, value in before.items())


def plain(attend, query, key, value, where):
    return attend(query, key, value)


def test_between_two_steps_nothing_is_left_on_the_model(tiny, trace):
    before, during = trace(tiny.unet), []

    def watched(attend, query, key, value, context):
        if not during:
            during.append(trace(tiny.unet))
        return attend(query, key, value)

    path = DenoisingPath("global", tiny.encode_text("a man"))
    plan = prepare_sampler(tiny.scheduler, 3, CPU, SIZE, 1.0)
    steps = denoise(tiny, torch.zeros(1, 4, 8, 8), [path], plan, rule=watched)
    next(steps)
    assert during[0] != before
    assert trace(tiny.unet) == before


def test_two_pictures_may_be_drawn_step_by_step_in_turn(tiny):
    def drawn(prompt, rule):
        plan = prepare_sampler(tiny.scheduler, 4, CPU, SIZE, 3.0, seed=1)
        path = DenoisingPath("global", tiny.encode_text(prompt), tiny.encode_text(""))
        return denoise(tiny, plan.noise(tiny), [path], plan, rule=rule)

    def halved(attend, query, key, value, where):
        return attend(query, key, value) / 2

    alone = [list(drawn("a man", plain)), list(drawn("a woman", halved))]
    in_turn = zip(drawn("a man", plain), drawn("a woman", halved), strict=True)
    for i, pair in enumerate(in_turn):
        assert all(torch.equal(pair[j].latent, alone[j][i].latent) for j in (0, 1))
