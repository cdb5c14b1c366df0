"""Memory tiers and micro-batches: they change where modules are, not the results."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from torch import nn

from costars.methods.omg.stages import draw_layout
from costars.model import offload as memory
from costars.model.adapters import scale_adapter
from costars.model.controlnet import load_controlnet
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import text_adapter
from costars.model.offload import FIRST_ROWS, MicroBatcher, Offload, choose_tier, count_weight_bytes, lower_tier
from costars.resolve import resolve_scene
from costars.types import ControlNet

CPU, META = torch.device("cpu"), torch.device("meta")


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


class Shared(nn.Sequential):
    """Two layers that share a weight, and buffers."""

    def __init__(self):
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        self[1].weight = self[0].weight


def devices(module):
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def test_offloaded_weights_are_copied_to_the_device_and_dropped():
    module, offload = Shared(), Offload("offload", META)
    offload.place(module)
    before, kept = dict(module.state_dict(keep_vars=True)), [*module.parameters(), *module.buffers()]
    with offload.on_device(module):
        assert devices(module) == {"meta"} and module[0].weight is module[1].weight
        assert [p.requires_grad for p in module.parameters()] == [True] * 5
        with offload.on_device(module):
            pass
        assert devices(module) == {"meta"}
    after = module.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in before.items()) and devices(module) == {"cpu"}
    assert all(a is b for a, b in zip(kept, [*module.parameters(), *module.buffers()], strict=True))
    assert not offload.in_use and not offload._masters


def test_a_copy_that_fails_leaves_every_module_on_the_cpu(monkeypatch):
    modules, offload = (Shared(), Shared()), Offload("offload", META)

    def fail_at_the_second(masters, device):
        if masters[0].tensor is modules[1][0].weight:
            raise torch.OutOfMemoryError
        copy_to_device(masters, device)

    copy_to_device = memory._copy_to_device
    monkeypatch.setattr(memory, "_copy_to_device", fail_at_the_second)
    with pytest.raises(torch.OutOfMemoryError), offload.on_device(*modules):
        pass
    assert devices(modules[0]) == devices(modules[1]) == {"cpu"} and not offload.in_use


def test_full_tier_moves_a_module_once():
    module, offload = Shared(), Offload("full", META)
    offload.place(module)
    assert devices(module) == {"meta"}
    with offload.on_device(module):
        assert devices(module) == {"meta"} and not offload.in_use


def test_auto_chooses_first_tier_that_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1_500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_500)
    cuda = torch.device("cuda")
    assert choose_tier("auto", 7_000, cuda) == "full"
    assert choose_tier("auto", 9_000, cuda) == "offload"
    assert choose_tier("sequential", 1, cuda) == "sequential"
    assert choose_tier("auto", 9_000, CPU) == "full"
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000)  # of which 1,500 are in use
    assert choose_tier("auto", 9_000, cuda) == "full"


@pytest.mark.parametrize(
    ("free", "max_rows", "calls"),
    [
        (100_000, 0, [2, 9, 9]),  # two rows are measured, then all fit
        (500, 0, [2, 4, 4, 1, 4, 4, 1]),  # 0.8 of it fits four rows
        (10, 0, [2, *[2, 2, 2, 2, 1] * 2]),  # never fewer than two
        (10, 5, [5, 4] * 2),  # the limit of the user
    ],
)
def test_micro_batch_size_follows_free_memory(monkeypatch, free, max_rows, calls):
    """On a device with this many free bytes, where each row takes 100; nine rows, twice."""
    taken, micro_batcher = [], MicroBatcher(max_rows, torch.device("cuda"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(memory, "_allocated_bytes", lambda device: 5000)
    monkeypatch.setattr(memory, "_peak_bytes", lambda device: 5000 + 100 * taken[-1])
    for _ in range(2):
        left = 9
        if micro_batcher.must_measure(left):
            with micro_batcher.measure(FIRST_ROWS):
                taken.append(FIRST_ROWS)
        while left:
            taken.append(micro_batcher.size(left))
            left -= taken[-1]
    assert taken == calls


@pytest.mark.parametrize(("max_rows", "rows"), [(0, 2), (3, 9)])
def test_few_rows_or_a_limit_need_no_measurement(monkeypatch, max_rows, rows):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100)
    assert not MicroBatcher(max_rows, torch.device("cuda")).must_measure(rows)


def test_cpu_batch_is_not_split():
    micro_batcher = MicroBatcher(0, CPU)
    assert not micro_batcher.must_measure(9) and micro_batcher.size(9) == 9


def test_free_bytes_include_torch_reserve(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 600)
    assert memory.free_bytes(torch.device("cuda")) == 1100 and memory.free_bytes(CPU) is None


def test_last_tier_has_no_lower_one():
    assert [lower_tier(t) for t in ("full", "offload", "sequential")] == ["offload", "sequential", None]


def test_weight_bytes():
    assert count_weight_bytes(nn.Linear(3, 5), nn.Linear(2, 2, bias=False).half()) == 4 * 20 + 2 * 4
