"""Less of a checkpoint in memory changes where its modules are, and nothing else."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from torch import nn

from costars.errors import ModelError
from costars.methods.omg.stages import draw_layout
from costars.model import offload as memory
from costars.model.controlnet import load_control_net
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import scaled, text_adapter
from costars.model.offload import Portion, Residence, chosen_tier, lower_tier, size_of
from costars.retry import spared
from costars.types import ControlNet, Job

CPU = torch.device("cpu")


class Moved(nn.Module):
    """Remembers where it was sent."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def to(self, device):
        self.sent.append(str(device))
        return self


@pytest.mark.parametrize("memory", ["offload", "sequential"])
def test_a_layout_is_the_same_whatever_stays_in_memory(tiny, golden, concepts, make_scene, finish, memory):
    small = load_model(Source("tiny", golden / "tiny-sdxl"), CPU, torch.float32, memory=memory)
    assert small.residence.tier == memory
    assert all(p.is_meta for p in small.unet.parameters()) == (memory == "sequential")
    job = Job(make_scene(steps=2), concepts)
    layouts = [finish(draw_layout(model, job, model.scheduler))[0] for model in (tiny, small)]
    assert torch.equal(layouts[0].latents, layouts[1].latents)
    with text_adapter(small.encoders, scaled(concepts["a"].adapter, 0.8)):
        text = small.encode_text("a man")
    with text_adapter(tiny.encoders, scaled(concepts["a"].adapter, 0.8)):
        assert torch.equal(text.tokens, tiny.encode_text("a man").tokens)


@pytest.mark.parametrize("memory", ["full", "offload", "sequential"])
def test_a_control_net_lives_where_the_rest_does(tiny, golden, concepts, make_scene, finish, memory, tmp_path):
    model = load_model(Source("tiny", golden / "tiny-sdxl"), CPU, torch.float32, memory=memory)
    drawn = ControlNetModel.from_unet(tiny.unet)
    for block in (*drawn.controlnet_down_blocks, drawn.controlnet_mid_block):
        block.weight.data.fill_(0.05)
    drawn.save_pretrained(tmp_path)
    net = load_control_net(tmp_path, "pose", model)
    assert all(p.is_meta for p in net.parameters()) == (memory == "sequential")
    latents = []
    for each, on in ((drawn, tiny), (net, model)):
        control = ControlNet(each, torch.ones(1, 3, 64, 64), 1.0, 0.0, 1.0)
        job = Job(make_scene(steps=2), concepts, controls=(control,))
        latents.append(finish(draw_layout(on, job, on.scheduler))[0].latents)
    plain = finish(draw_layout(tiny, Job(make_scene(steps=2), concepts), tiny.scheduler))[0].latents
    assert torch.equal(*latents) and not torch.equal(latents[0], plain)


def test_with_offload_a_control_net_is_on_the_device_only_while_it_draws(tiny):
    net, residence = Moved(), Residence("offload", CPU)
    with replace(tiny, residence=residence).drawing([ControlNet(net, torch.ones(1, 3, 64, 64), 1.0, 0.0, 1.0)]):
        assert net.sent == ["cpu"] and residence.busy[id(net)] == 1
    assert not residence.busy[id(net)]


def test_with_offload_a_module_is_on_the_device_only_while_it_works():
    module, residence = Moved(), Residence("offload", torch.device("cuda"))
    residence.settle(module)
    assert module.sent == []
    with residence.at_work(module):
        with residence.at_work(module):
            pass
        assert "cpu" not in module.sent
    assert module.sent[-1] == "cpu" and set(module.sent[:-1]) == {"cuda"}


def test_with_all_in_memory_nothing_moves():
    module, residence = Moved(), Residence("full", torch.device("cuda"))
    residence.settle(module)
    with residence.at_work(module):
        pass
    assert module.sent == ["cuda"]


def test_auto_is_what_the_device_has_room_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12_000, 16_000))
    cuda = torch.device("cuda")
    assert chosen_tier("auto", 7_000, cuda) == "full"
    assert chosen_tier("auto", 9_000, cuda) == "offload"
    assert chosen_tier("sequential", 1, cuda) == "sequential"
    assert chosen_tier("auto", 9_000, CPU) == "full"


@pytest.fixture
def counted(monkeypatch):
    """A device with so many bytes free, on which each row takes 100."""
    bytes_free, rows_now = [0], [0]
    monkeypatch.setattr(memory, "free_bytes", lambda device: bytes_free[0])
    monkeypatch.setattr(memory, "_taken_bytes", lambda device: 5000)
    monkeypatch.setattr(memory, "_most_taken_bytes", lambda device: 5000 + 100 * rows_now[0])

    def through(free, rows, most=0):
        bytes_free[0], portion, calls = free, Portion(most, torch.device("cuda")), []
        for _ in range(2):
            left = rows
            while left:
                rows_now[0] = portion.size(left)
                with portion.measured(rows_now[0]):
                    left -= rows_now[0]
                calls.append(rows_now[0])
        return calls

    return through


@pytest.mark.parametrize(
    ("free", "most", "calls"),
    [
        (100_000, 0, [2, 7, 9]),  # room for all once the first two have told what they take
        (500, 0, [2, 4, 3, 4, 4, 1]),  # 0.8 of it is room for four
        (10, 0, [2, 2, 2, 2, 1] * 2),  # two must be together, come what may
        (10, 5, [5, 4] * 2),  # what the user set is not questioned
    ],
)
def test_as_many_rows_go_at_once_as_there_is_room_for(counted, free, most, calls):
    assert counted(free, 9, most) == calls


def test_a_cpu_counts_nothing_and_takes_all():
    portion = Portion(0, CPU)
    with portion.measured(7):
        assert portion.size(7) == 7
    assert portion.size(9) == 9


def test_free_is_what_the_device_has_and_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 600)
    assert memory.free_bytes(torch.device("cuda")) == 1100 and memory.free_bytes(CPU) is None


def test_the_tiers_end():
    assert [lower_tier(t) for t in ("full", "offload", "sequential")] == ["offload", "sequential", None]


def test_weights_are_counted_in_bytes():
    assert size_of(nn.Linear(3, 5), nn.Linear(2, 2, bias=False).half()) == 4 * 20 + 2 * 4


def running_out(times, error=torch.OutOfMemoryError):
    """Steps that run out of memory so many times before they come to their end."""
    left = [times]

    def steps():
        yield "a step"
        if left[0]:
            left[0] -= 1
            raise error
        yield "the picture"

    return steps


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, CPU_FULL, MemoryError])
def test_where_memory_runs_out_it_is_tried_once_more_with_less(error):
    made = []
    steps = spared(running_out(1, error), lambda: made.append("room") or True)
    assert list(steps) == ["a step", "a step", "the picture"] and made == ["room"]


def test_another_error_is_no_matter_of_memory():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(spared(running_out(1, RuntimeError("shapes do not match")), lambda: True))


@pytest.mark.parametrize(("times", "lowered"), [(2, True), (1, False)])
def test_where_that_is_not_enough_it_says_what_to_set(times, lowered):
    with pytest.raises(ModelError, match="out of memory, also with less of the model in it; set a smaller size"):
        list(spared(running_out(times), lambda: lowered))
