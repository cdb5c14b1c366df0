"""Every kind of adapter layer changes a layer's output as the library that trains it does: LyCORIS and peft."""

from dataclasses import dataclass, field

import peft
import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import nn

from costars.concepts.load import load_concept
from costars.concepts.saving import write_concept
from costars.errors import ConceptError
from costars.model.adapters import scale_adapter
from costars.model.lora import one_adapter_per_row
from costars.types import FullChange, LowRank

# A layer of each shape, at a path where costars expects one, with the input that it is tried with.
PATHS = {
    "linear": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "square": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k",
    "conv": "down_blocks.0.resnets.0.conv1",
    "pointwise": "down_blocks.0.resnets.0.conv_shortcut",
    "layer_norm": "down_blocks.0.attentions.0.transformer_blocks.0.norm1",
    "group_norm": "down_blocks.0.resnets.0.norm1",
}


def make_layer(shape: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    layers = {
        "linear": lambda: nn.Linear(12, 8),
        "square": lambda: nn.Linear(8, 8, bias=False),
        "conv": lambda: nn.Conv2d(12, 8, 3, 2, 1),
        "pointwise": lambda: nn.Conv2d(12, 8, 1),
        "layer_norm": lambda: nn.LayerNorm(12),
        "group_norm": lambda: nn.GroupNorm(3, 12),
    }
    layer = layers[shape]()
    width = 8 if shape == "square" else 12
    x = torch.randn(3, 5, width) if shape in ("linear", "square", "layer_norm") else torch.randn(3, width, 7, 6)
    with torch.no_grad():
        for parameter in layer.parameters():  # norms start with ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer, x


def randomize(module: nn.Module) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))


def output(layer: nn.Module, change, x: torch.Tensor) -> torch.Tensor:
    """The layer's outputs: the second row with the change, the others without."""
    module = nn.ModuleDict({"layer": layer})
    with torch.no_grad(), one_adapter_per_row(module, "m.", {"a": {"m.layer": change}}) as state:
        with state.on([None, "a", None]):
            out = layer(x)
        assert torch.equal(out[::2], layer(x)[::2])
    assert not layer._forward_hooks
    return out[1]


def load_change(path):
    (entry,) = load_concept(path, "mine", "mine").adapter.values()
    return entry


@dataclass
class Lycoris:
    """A module of LyCORIS with its options."""

    kind: type
    shape: str
    options: dict = field(default_factory=dict)
    rank: int = 2

    def __str__(self) -> str:
        return "-".join([self.kind.name, self.shape, *self.options])


ALL = ("linear", "square", "conv", "pointwise")
LYCORIS = [
    *(Lycoris(LoConModule, shape, {"alpha": 3}) for shape in ALL),
    Lycoris(LoConModule, "conv", {"use_tucker": True}),
    Lycoris(LoConModule, "conv", {"use_tucker": True, "weight_decompose": True}),
    *(Lycoris(LoConModule, shape, {"weight_decompose": True, "alpha": 3}) for shape in ALL),
    *(Lycoris(LoConModule, shape, {"weight_decompose": True, "wd_on_out": False}) for shape in ALL),
    Lycoris(LoConModule, "linear", {"rs_lora": True, "alpha": 3}),
    Lycoris(LoConModule, "linear", {"use_scalar": True}),
    *(Lycoris(LohaModule, shape, {"alpha": 1}) for shape in ALL),
    *(Lycoris(LohaModule, shape, {"alpha": 1}, rank=4) for shape in ALL),  # 4 x 4 is more than the rank of the layer
    Lycoris(LohaModule, "conv", {"use_tucker": True, "alpha": 1}),
    Lycoris(LohaModule, "square", {"weight_decompose": True}),
    *(Lycoris(LokrModule, shape, {"alpha": 1, "factor": 2}, rank=1) for shape in ALL),
    *(Lycoris(LokrModule, shape, {"factor": 4, "full_matrix": True, "alpha": 1}) for shape in ALL),
    Lycoris(LokrModule, "linear", {"factor": 4, "decompose_both": True, "alpha": 3}, rank=1),
    Lycoris(LokrModule, "conv", {"factor": 2, "use_tucker": True, "alpha": 1}, rank=1),
    Lycoris(LokrModule, "conv", {"factor": 2, "weight_decompose": True}, rank=1),
    *(Lycoris(FullModule, shape) for shape in ALL),
    *(Lycoris(NormModule, shape) for shape in ("layer_norm", "group_norm")),
    *(Lycoris(GLoRAModule, shape, {"alpha": 3}) for shape in ALL),
    *(Lycoris(IA3Module, shape) for shape in ALL),
    *(Lycoris(IA3Module, shape, {"train_on_input": True}) for shape in ALL),
    *(Lycoris(DiagOFTModule, shape, rank=4) for shape in ALL),
    *(Lycoris(DiagOFTModule, shape, {"constraint": 0.01, "rescaled": True}, rank=4) for shape in ALL),
    *(Lycoris(ButterflyOFTModule, shape, rank=2) for shape in ALL),
    Lycoris(ButterflyOFTModule, "conv", {"constraint": 0.01, "rescaled": True}, rank=4),
]


@pytest.mark.parametrize("case", LYCORIS, ids=str)
def test_layer_of_lycoris(case, tmp_path, write):
    layer, x = make_layer(case.shape)
    module = case.kind("name", layer, lora_dim=case.rank, **case.options)
    randomize(module)
    state = module.state_dict()
    if case.kind is FullModule:  # its state dict is of an applied network
        state = {"diff": module.weight.data} | ({} if module.bias is None else {"diff_b": module.bias.data})
    with torch.no_grad():
        expected, plain = module(x)[1], layer(x)[1]
    stem = f"lora_unet_{PATHS[case.shape].replace('.', '_')}"
    change = load_change(write({f"{stem}.{name}": tensor for name, tensor in state.items()}))
    out = output(layer, change, x)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
    assert (out - plain).abs().max() > 0.01
    concept = load_concept(tmp_path / "mine.safetensors", "mine", "mine")
    write_concept(concept, {}, tmp_path / "imported.safetensors")
    again = output(layer, load_change(tmp_path / "imported.safetensors"), x)
    torch.testing.assert_close(again, out, atol=1e-6, rtol=1e-6)


def test_scalar_of_old_lycoris_files_is_multiplied(write, random):
    stem = f"lora_unet_{PATHS['linear'].replace('.', '_')}"
    tensors = {f"{stem}.lora_down.weight": random(2, 12), f"{stem}.lora_up.weight": random(8, 2)}
    plain = load_change(write(tensors, "plain"))
    whole = {f"{stem}.lokr_w1": random(2, 2), f"{stem}.lokr_w2": random(4, 6), f"{stem}.scalar": torch.tensor(0.25)}
    assert load_change(write(whole, "whole")).parts[0][0].tensors["scale"] == 0.25
    scaled = load_change(write(tensors | {f"{stem}.scalar": torch.tensor(0.25)}, "scaled"))
    assert torch.equal(scaled.up, plain.up * 0.25) and torch.equal(scaled.down, plain.down)


PEFT = [
    (peft.LoHaConfig, {"r": 2, "alpha": 3}, ALL),
    (peft.LoHaConfig, {"r": 2, "alpha": 3, "use_effective_conv2d": True}, ("conv",)),
    (peft.LoKrConfig, {"r": 1, "alpha": 3}, ALL),
    (peft.LoKrConfig, {"r": 8, "alpha": 3}, ALL),  # whole factors, still scaled
    (peft.LoKrConfig, {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 4}, ALL),
    (peft.LoKrConfig, {"r": 1, "alpha": 3, "use_effective_conv2d": True}, ("conv",)),
    (peft.LoraConfig, {"r": 2, "lora_alpha": 3, "use_dora": True}, ALL),
    (peft.LoraConfig, {"r": 3, "lora_alpha": 3, "use_rslora": True}, ALL),
    (peft.OFTConfig, {"r": 4, "oft_block_size": 0}, ("linear", "pointwise")),
    (peft.OFTConfig, {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}, ("linear", "square")),
    *(
        (peft.OFTConfig, {"r": 2, "num_cayley_neumann_terms": n, "oft_block_size": 0}, ("linear",))
        for n in (1, 2, 3, 4, 6)
    ),
    (peft.OFTConfig, {"r": 4, "oft_block_size": 0, "block_share": True}, ("linear",)),
    (peft.BOFTConfig, {"boft_block_size": 4}, ("linear", "square", "pointwise")),
    (peft.IA3Config, {}, ALL),
    (peft.IA3Config, {"feedforward_modules": ["LAYER"]}, ALL),
]


@pytest.mark.parametrize(
    ("config", "options", "shape"),
    [(c, o, s) for c, o, shapes in PEFT for s in shapes],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else getattr(value, "__name__", str(value)),
)
def test_layer_of_peft(config, options, shape, tmp_path, monkeypatch):
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)  # else it compiles an extension
    layer, x = make_layer(shape)
    name = PATHS[shape].rpartition(".")[2]
    options = {k: [name if v == "LAYER" else v for v in o] if isinstance(o, list) else o for k, o in options.items()}
    if config is peft.IA3Config:
        options = {"feedforward_modules": [], **options}
    model = peft.get_peft_model(_nest(PATHS[shape], layer), config(target_modules=[name], **options))
    adapted = model.base_model.model.get_submodule(PATHS[shape])
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "base_layer" not in parameter_name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        expected = adapted(x)[1]
    model.save_pretrained(tmp_path)
    out = output(layer, load_change(tmp_path / "adapter_model.safetensors"), x)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
    has_effect = options.get("num_cayley_neumann_terms") != 1
    assert ((out - layer(x)[1]).abs().max() > 0.01) == has_effect


def _nest(path: str, layer: nn.Module) -> nn.Module:
    """A module with a layer at this path."""
    name, _, rest = path.partition(".")
    outer = nn.Module()
    outer.add_module(name, _nest(rest, layer) if rest else layer)
    return outer


STEM = f"lora_unet_{PATHS['linear'].replace('.', '_')}"


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_weight_of_a_dora_scales_its_change(write, random, weight):
    """Linearly, as ComfyUI does: half of the weight is half of the way from the model's weights to the DoRA's."""
    layer, x = make_layer("linear")
    tensors = {"lora_down.weight": random(2, 12), "lora_up.weight": random(8, 2), "dora_scale": random(8, 1).abs()}
    change = load_change(write({f"{STEM}.{name}": tensor for name, tensor in tensors.items()}))
    full = output(layer, change, x) - layer(x)[1]
    scaled = output(layer, scale_adapter({"m.layer": change}, weight)["m.layer"], x) - layer(x)[1]
    torch.testing.assert_close(scaled, weight * full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"), [("linear", (8, 12)), ("pointwise", (8, 12, 1, 1)), ("conv", (8, 12, 3, 3))]
)
def test_set_weight_of_comfyui_replaces_the_weight(write, random, name, shape):
    layer, x = make_layer(name)
    stem = f"lora_unet_{PATHS[name].replace('.', '_')}"
    change = load_change(write({f"{stem}.set_weight": random(*shape)}))
    out = output(layer, change, x)
    with torch.no_grad():
        layer.weight.copy_(random(*shape))
        torch.testing.assert_close(out, layer(x)[1], atol=1e-5, rtol=1e-5)


def test_bias_difference_beside_a_lora(write, random):
    """As ComfyUI extracts it."""
    layer, x = make_layer("linear")
    tensors = {"lora_down.weight": random(2, 12), "lora_up.weight": random(8, 2), "diff_b": random(8)}
    out = output(layer, load_change(write({f"{STEM}.{name}": tensor for name, tensor in tensors.items()})), x)
    expected = layer(x)[1] + x[1] @ random(2, 12).T @ random(8, 2).T + random(8)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_files_stay_half(write, random):
    """A full difference takes no more memory than its file."""
    change = load_change(write({f"{STEM}.diff": random(8, 12).half()}))
    assert change.parts[0][0].tensors["diff"].dtype is torch.float16


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"lokr_w1": (2, 2)}, "has tensors lokr_w1, expected those of one kind"),
        ({"lokr_w1": (2, 2), "lokr_w2": (4, 6), "magnitude": ()}, "contains"),
        ({"lokr_w1": (2,), "lokr_w2": (4, 6)}, "which do not fit together"),
        ({"diff": (8, 12), "lora_down.weight": (2, 12), "lora_up.weight": (8, 2)}, "has tensors diff, down, up, expec"),
        ({"dora_scale": (8, 1)}, "has tensors dora_scale, expected"),
        ({"oft_blocks": (2, 4, 3)}, "expected square blocks"),
        ({"lora_down.weight": (2, 12), "lora_mid.weight": (), "lora_up.weight": (8, 2)}, "do not fit together"),
        ({"a1.weight": (), "a2.weight": (2, 12), "b1.weight": (8, 2), "b2.weight": (2, 12)}, "do not fit together"),
        (
            {
                "hada_w1_a": (8,),
                "hada_w1_b": (2, 12),
                "hada_w2_a": (2, 8),
                "hada_w2_b": (2, 12),
                "hada_t1": (2, 2, 3, 3),
                "hada_t2": (2, 2, 3, 3),
            },
            "do not fit together",
        ),
        ({"lora_down.weight": (2, 12, 3, 3), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (8, 2)}, "do not fit"),
        ({"hada_w1_a": (2, 8), "hada_w1_b": (2, 12), "hada_w2_a": (2, 8), "hada_w2_b": (2, 12)}, "do not fit together"),
    ],
)
def test_tensors_that_make_no_layer_are_rejected(write, tensors, expected):
    with pytest.raises(ConceptError, match=expected) as caught:
        load_concept(write({f"{STEM}.{name}": torch.ones(shape) for name, shape in tensors.items()}), "mine", "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"lokr_w1": (2, 2), "lokr_w2": (4, 7)}, r"has tensors w1 \(2, 2\), w2 \(4, 7\), which do not fit the model's"),
        ({"lora_down.weight": (2, 12), "lora_up.weight": (8, 2), "dora_scale": (3, 1)}, "has DoRA magnitudes of shape"),
        ({"oft_blocks": (3, 2, 2)}, "which do not fit the model's weight"),
        ({"diff": (12, 8)}, "which do not fit the model's weight"),
        ({"diff": ()}, "which do not fit the model's weight"),
        ({"lora_down.weight": (2, 12), "lora_up.weight": (8, 2), "dora_scale": ()}, "which do not fit the model's"),
        ({"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2), "b2.weight": (2, 12)}, "another layout"),
        ({"on_input": (), "weight": (8,)}, "has 8 factors, the model's "),
    ],
)
def test_layer_of_another_size_is_rejected_before_it_is_applied(write, tensors, expected):
    layer, x = make_layer("linear")
    change = load_change(write({f"{STEM}.{name}": torch.ones(shape) for name, shape in tensors.items()}))
    with pytest.raises(ConceptError, match=expected):
        output(layer, change, x)


@pytest.mark.parametrize("name", ["lokr_w2", "lokr_w1"])
def test_non_finite_whole_changes_are_rejected(write, name):
    tensors = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(4, 6).half()}
    tensors[name][0, 0] = float("inf")
    with pytest.raises(ConceptError, match="has non-finite values, as after a failed training"):
        load_concept(write({f"{STEM}.{key}": tensor for key, tensor in tensors.items()}), "mine", "mine")


def test_norms_cannot_be_changed_by_products(write, random):
    layer, x = make_layer("layer_norm")
    change = FullChange(((LowRank(random(2, 12), random(12, 2)), 1.0),))
    with pytest.raises(ConceptError, match="changes a norm, which only differences and new values can change"):
        output(layer, change, x)
