"""Memory tiers and micro-batches: they change where modules are, not the results."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from torch import nn

from costars.methods.omg.stages import draw_layout
from costars.model import offload as memory
from costars.model.controlnet import load_controlnet
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import scale_adapter, text_adapter
from costars.model.offload import MicroBatcher, Offload, choose_tier, count_weight_bytes, lower_tier
from costars.resolve import resolve_scene
from costars.types import ControlNet

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
def test_layout_is_equal_in_every_tier(tiny, golden, concepts, make_scene, finish, memory):
    small = load_model(Source("tiny", golden / "tiny-sdxl"), CPU, torch.float32, memory=memory)
    assert small.offload.tier == memory
    assert all(p.is_meta for p in small.unet.parameters()) == (memory == "sequential")
    scene = make_scene(steps=2)
    layouts = [finish(draw_layout(resolve_scene(scene, model, concepts)))[0] for model in (tiny, small)]
    assert torch.equal(layouts[0].latents, layouts[1].latents)
    with text_adapter(small.encoders, scale_adapter(concepts["a"].adapter, 0.8)):
        text = small.encode_text("a man")
    with text_adapter(tiny.encoders, scale_adapter(concepts["a"].adapter, 0.8)):
        assert torch.equal(text.tokens, tiny.encode_text("a man").tokens)


@pytest.mark.parametrize("memory", ["full", "offload", "sequential"])
def test_controlnet_is_placed_like_the_model(tiny, golden, concepts, make_scene, finish, memory, tmp_path):
    model = load_model(Source("tiny", golden / "tiny-sdxl"), CPU, torch.float32, memory=memory)
    drawn = ControlNetModel.from_unet(tiny.unet).requires_grad_(False)  # PyTorch may round otherwise with gradients
    for block in (*drawn.controlnet_down_blocks, drawn.controlnet_mid_block):
        block.weight.data.fill_(0.05)
    drawn.save_pretrained(tmp_path)
    net = load_controlnet(tmp_path, "pose", model)
    assert all(p.is_meta for p in net.parameters()) == (memory == "sequential")
    latents = []
    for each, on in ((drawn, tiny), (net, model)):
        control = ControlNet(each, torch.ones(1, 3, 64, 64), 1.0, 0.0, 1.0)
        resolved = resolve_scene(make_scene(steps=2), on, concepts)
        latents.append(finish(draw_layout(replace(resolved, controls=(control,))))[0].latents)
    plain = finish(draw_layout(resolve_scene(make_scene(steps=2), tiny, concepts)))[0].latents
    assert torch.equal(*latents) and not torch.equal(latents[0], plain)


def test_offloaded_controlnet_is_on_device_only_in_use(tiny):
    net, offload = Moved(), Offload("offload", CPU)
    with replace(tiny, offload=offload).unet_on_device([ControlNet(net, torch.ones(1, 3, 64, 64), 1.0, 0.0, 1.0)]):
        assert net.sent == ["cpu"] and offload.in_use[id(net)] == 1
    assert not offload.in_use[id(net)]


def test_offloaded_module_is_on_device_only_in_use():
    module, offload = Moved(), Offload("offload", torch.device("cuda"))
    offload.place(module)
    assert module.sent == []
    with offload.on_device(module):
        with offload.on_device(module):
            pass
        assert "cpu" not in module.sent
    assert module.sent[-1] == "cpu" and set(module.sent[:-1]) == {"cuda"}


def test_full_tier_moves_nothing():
    module, offload = Moved(), Offload("full", torch.device("cuda"))
    offload.place(module)
    with offload.on_device(module):
        pass
    assert module.sent == ["cuda"]


def test_auto_chooses_first_tier_that_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12_000, 16_000))
    cuda = torch.device("cuda")
    assert choose_tier("auto", 7_000, cuda) == "full"
    assert choose_tier("auto", 9_000, cuda) == "offload"
    assert choose_tier("sequential", 1, cuda) == "sequential"
    assert choose_tier("auto", 9_000, CPU) == "full"


@pytest.fixture
def micro_batch_sizes(monkeypatch):
    """Run micro-batches on a device with this many free bytes, where each row takes 100."""
    bytes_free, rows_now = [0], [0]
    monkeypatch.setattr(memory, "free_bytes", lambda device: bytes_free[0])
    monkeypatch.setattr(memory, "_allocated_bytes", lambda device: 5000)
    monkeypatch.setattr(memory, "_peak_bytes", lambda device: 5000 + 100 * rows_now[0])

    def run(free, rows, max_rows=0):
        bytes_free[0], micro_batcher, calls = free, MicroBatcher(max_rows, torch.device("cuda")), []
        for _ in range(2):
            left = rows
            while left:
                rows_now[0] = micro_batcher.size(left)
                with micro_batcher.measure(rows_now[0]):
                    left -= rows_now[0]
                calls.append(rows_now[0])
        return calls

    return run


@pytest.mark.parametrize(
    ("free", "max_rows", "calls"),
    [
        (100_000, 0, [2, 7, 9]),  # the first two rows are measured, then all fit
        (500, 0, [2, 4, 3, 4, 4, 1]),  # 0.8 of it fits four rows
        (10, 0, [2, 2, 2, 2, 1] * 2),  # never fewer than two
        (10, 5, [5, 4] * 2),  # the limit of the user
    ],
)
def test_micro_batch_size_follows_free_memory(micro_batch_sizes, free, max_rows, calls):
    assert micro_batch_sizes(free, 9, max_rows) == calls


def test_cpu_batch_is_not_split():
    micro_batcher = MicroBatcher(0, CPU)
    with micro_batcher.measure(7):
        assert micro_batcher.size(7) == 7
    assert micro_batcher.size(9) == 9


def test_free_bytes_include_torch_reserve(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 600)
    assert memory.free_bytes(torch.device("cuda")) == 1100 and memory.free_bytes(CPU) is None


def test_last_tier_has_no_lower_one():
    assert [lower_tier(t) for t in ("full", "offload", "sequential")] == ["offload", "sequential", None]


def test_weight_bytes():
    assert count_weight_bytes(nn.Linear(3, 5), nn.Linear(2, 2, bias=False).half()) == 4 * 20 + 2 * 4
