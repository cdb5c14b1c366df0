"""The weight change of each kind of adapter file equals its formula, and diffusers' result."""

import pytest
import torch

from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.model.full_change import sum_parts
from costars.types import LowRank

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + QUERY.replace(".", "_")
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def weight_change(entry) -> torch.Tensor:
    """up @ down in the shape of the layer's weight."""
    return torch.einsum("or,r...->o...", entry.up.flatten(1), entry.down)


def load_layer(path):
    (entry,) = load_concept(path, "mine", "mine").adapter.values()
    return entry


@pytest.mark.parametrize("alpha", [1.0, 4.0, 0.5, None])
def test_lora_change_is_up_down_alpha_over_rank(write, random, alpha):
    down, up = random(3, 6), random(5, 3)
    tensors = {f"{FLAT}.lora_down.weight": down, f"{FLAT}.lora_up.weight": up}
    tensors |= {} if alpha is None else {f"{FLAT}.alpha": torch.tensor(alpha)}
    concept = load_concept(write(tensors), "mine", "mine")
    assert (list(concept.adapter), concept.format) == ([f"unet.{QUERY}"], "kohya")
    expected = up @ down * (1 if alpha is None else alpha / 3)
    assert torch.allclose(weight_change(concept.adapter[f"unet.{QUERY}"]), expected, atol=1e-6)


def test_locon_change_is_the_product_at_every_kernel_position(write, random):
    down, up = random(2, 6, 3, 3), random(5, 2, 1, 1)
    path = write({f"{CONV}.lora_down.weight": down, f"{CONV}.lora_up.weight": up, f"{CONV}.alpha": torch.tensor(1.0)})
    expected = torch.stack([sum(up[o, r, 0, 0] * down[r] for r in range(2)) for o in range(5)]) / 2
    assert torch.allclose(weight_change(load_layer(path)), expected, atol=1e-6)


def loha_change(entry, weight) -> torch.Tensor:
    """A change of low rank, or of the whole weight."""
    return weight_change(entry) if isinstance(entry, LowRank) else sum_parts(entry, weight, None)[0]


def loha_tensors(stem, shapes, random, alpha=None):
    tensors = {
        f"{stem}.hada_w{i}_{side}": random(*shape, seed=10 * i)
        for i in (1, 2)
        for side, shape in zip("ab", shapes, strict=True)
    }
    return tensors | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)})


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(("out", "inside"), [(9, 5), (5, 9)])
def test_loha_change_is_the_product_of_two_matrix_products(write, random, rank, out, inside):
    tensors = loha_tensors(FLAT, [(out, rank), (rank, inside)], random, alpha=2.0)
    concept = load_concept(write(tensors), "mine", "mine")
    entry = concept.adapter[f"unet.{QUERY}"]
    a1, b1, a2, b2 = (tensors[f"{FLAT}.hada_w{w}"] for w in ("1_a", "1_b", "2_a", "2_b"))
    change = loha_change(entry, torch.zeros(out, inside))
    assert torch.allclose(change, (a1 @ b1) * (a2 @ b2) * 2 / rank, atol=1e-5)
    assert isinstance(entry, LowRank) == (rank == 1) and concept.format == "LyCORIS LoHa"


@pytest.mark.parametrize(("name", "side"), [("conv1", 3), ("conv_shortcut", 1)])
def test_loha_of_a_convolution_unfolds_the_kernel(write, random, name, side):
    stem = f"lora_unet_mid_block_resnets_0_{name}"
    tensors = loha_tensors(stem, [(5, 2), (2, 4 * side**2)], random)
    a1, b1, a2, b2 = (tensors[f"{stem}.hada_w{w}"] for w in ("1_a", "1_b", "2_a", "2_b"))
    entry = load_layer(write(tensors))
    expected = ((a1 @ b1) * (a2 @ b2)).view(5, 4, side, side)
    assert torch.allclose(loha_change(entry, torch.zeros(5, 4, side, side)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("stem", "metadata", "axes"),
    [
        (FLAT, {}, 2),
        ("lora_unet_mid_block_resnets_0_conv_shortcut", {}, 4),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", {}, 2),
        ("lora_unet_mid_block_attentions_0_proj_in", {"ss_base_model_version": "sdxl_base_v1-0"}, 2),
        ("lora_unet_mid_block_attentions_0_proj_out", {"ss_base_model_version": "sd_v1"}, 4),
    ],
)
@pytest.mark.parametrize(("down_axes", "up_axes"), [(2, 2), (4, 4), (4, 2), (2, 4)])
def test_axes_follow_the_kind_of_layer(write, random, stem, metadata, axes, down_axes, up_axes):
    down, up = random(2, 6), random(5, 2)
    tensors = {
        f"{stem}.lora_down.weight": down[(...,) + (None,) * (down_axes - 2)],
        f"{stem}.lora_up.weight": up[(...,) + (None,) * (up_axes - 2)],
    }
    entry = load_layer(write(tensors, **metadata))
    assert entry.down.ndim == entry.up.ndim == axes
    # Not torch.equal: the product of tensors with other shapes and strides may be summed in another order, which
    # changes the last bits of float32.
    torch.testing.assert_close(weight_change(entry).flatten(), (up @ down).flatten())


def test_projection_of_unknown_family_keeps_its_axes(write, random):
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    for axes in (2, 4):
        more = (None,) * (axes - 2)
        tensors = {
            f"{stem}.lora_down.weight": random(2, 6)[(..., *more)],
            f"{stem}.lora_up.weight": random(5, 2)[(..., *more)],
        }
        assert load_layer(write(tensors)).down.ndim == axes


def test_golden_kohya_files_equal_diffusers(loras, pipeline):
    """Compares the weight change of every layer; style_kohya has both text encoders."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    for name in ("char_a", "char_b", "char_c_kohya", "style_kohya"):
        adapter = load_concept(loras / f"{name}.safetensors", name, name).adapter
        pipeline.load_lora_weights(loras / f"{name}.safetensors", adapter_name=name)
        expected = {}
        for part, module in parts.items():
            for path, layer in module.named_modules():
                if name in getattr(layer, "lora_A", {}):
                    full_path = path if part == "unet" or path.startswith("text_") else f"text_model.{path}"
                    expected[f"{part}.{full_path}"] = layer.get_delta_weight(name)
        assert set(adapter) == set(expected) and len(adapter) > 160
        for path, delta in expected.items():
            assert torch.allclose(weight_change(adapter[path]), delta, atol=1e-6), path
        pipeline.unload_lora_weights()


LORA = ("lora_down.weight", "lora_up.weight", "alpha")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@pytest.mark.parametrize(
    ("names", "shapes", "expected"),
    [
        (
            LORA,
            [(2, 6)],
            "has tensors down, expected those of one kind: down, up (LoRA); w1_a, w1_b, w2_a, w2_b (LoHa); lokr",
        ),
        (LORA[2:], [()], "has tensors alpha, expected those of one kind: down, up"),
        (LOHA, [(5, 2), (2, 6)], "has tensors w1_a, w1_b, expected those of one kind"),
        (LORA, [(2, 6), (5, 3)], "has tensors of shapes (2, 6), (5, 3)"),
        (LORA, [(2, 6), (5, 2, 3, 3)], "has tensors of shapes (2, 6), (5, 2, 3, 3)"),
        (LORA, [(2,), (5, 2)], "has tensors of shapes (2,), (5, 2)"),
        (LORA, [(0, 6), (5, 0)], "has tensors of shapes (0, 6), (5, 0): rank 0, expected 1 to 4096"),
        (LORA, [(4097, 1), (1, 4097)], "has tensors of shapes (4097, 1), (1, 4097): rank 4097, expected 1 to 4096"),
        (LORA, [(2, 6), (5, 2), (2,)], "has alpha of shape (2,), expected one number"),
        (
            LOHA,
            [(5, 2), (2, 6), (4, 2), (2, 6)],
            "has tensors of shapes (5, 2), (2, 6), (4, 2), (2, 6), which do not fit",
        ),
        (
            LOHA,
            [(5, 2), (3, 6), (5, 2), (2, 6)],
            "has tensors of shapes (5, 2), (3, 6), (5, 2), (2, 6), which do not fit",
        ),
        (LOHA, [(5,), (2, 6), (5, 2), (2, 6)], "has tensors of shapes (5,), (2, 6), (5, 2), (2, 6), which do not fit"),
        (
            LOHA,
            [(5, 0), (0, 6), (5, 2), (2, 6)],
            "has tensors of shapes (5, 0), (0, 6), (5, 2), (2, 6), which do not fit",
        ),
    ],
)
def test_inconsistent_layer_is_rejected(write, names, shapes, expected):
    tensors = {f"{FLAT}.{name}": torch.ones(shape) for name, shape in zip(names, shapes, strict=False)}
    with pytest.raises(ConceptError) as caught:
        load_concept(write(tensors), "mine", "mine")
    assert f"mine: 'unet.{QUERY}' {expected}" in str(caught.value)
    assert str(caught.value).endswith("fetch the file again") and "\n" not in str(caught.value)


def test_too_large_loha_is_rejected(write):
    shapes = zip(LOHA, 2 * [(2**15, 70), (70, 2**15)], strict=True)
    tensors = {f"{FLAT}.{name}": torch.zeros(shape, dtype=torch.float16) for name, shape in shapes}
    with pytest.raises(ConceptError, match="which would expand to over 268435456 elements; fetch the file again"):
        load_concept(write(tensors), "mine", "mine")


def test_loha_that_does_not_fit_the_kernel_is_rejected(write, random):
    with pytest.raises(ConceptError, match="which do not fit a kernel of 3 x 3; fetch the file again"):
        load_concept(write(loha_tensors(CONV, [(5, 2), (2, 10)], random)), "mine", "mine")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_non_finite_values_are_rejected(write, value, key):
    tensors = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.ones(5, 2), "alpha": torch.ones(())}
    tensors[key].view(-1)[0] = value
    with pytest.raises(ConceptError, match="has non-finite values, as after a failed training"):
        load_concept(write({f"{FLAT}.{k}": t for k, t in tensors.items()}), "mine", "mine")


def test_layer_with_two_names_is_rejected(write, random):
    stems = (FLAT, "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")
    tensors = {f"{s}.lora_{side}.weight": random(2, 2) for s in stems for side in ("down", "up")}
    with pytest.raises(ConceptError, match=rf"mine: layer 'unet.{QUERY}' appears twice, once as 'lora_unet_mid"):
        load_concept(write(tensors), "mine", "mine")


def test_alpha_zero_is_rejected(write, random):
    tensors = {"lora_down.weight": random(2, 6), "lora_up.weight": random(5, 2), "alpha": torch.zeros(())}
    with pytest.raises(ConceptError, match="has alpha 0, which some programs read as no change and others as the rank"):
        load_concept(write({f"{FLAT}.{k}": t for k, t in tensors.items()}), "mine", "mine")


@pytest.mark.parametrize("alpha", [torch.tensor([4.0]), torch.tensor(4), torch.tensor([[4.0]]).half()])
def test_alpha_may_have_axes_or_be_an_integer(write, random, alpha):
    tensors = {f"{FLAT}.lora_down.weight": random(2, 6), f"{FLAT}.lora_up.weight": random(5, 2)}
    scaled = load_layer(write(tensors | {f"{FLAT}.alpha": alpha}))
    assert torch.equal(scaled.up, random(5, 2) * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_factors_of_any_floating_point_type(write, random, dtype):
    tensors = {"lora_down.weight": random(2, 6).to(dtype), "lora_up.weight": random(5, 2).to(dtype)}
    entry = load_layer(write({f"{FLAT}.{k}": t for k, t in tensors.items()}))
    assert entry.down.dtype is torch.float32 and torch.equal(entry.down, tensors["lora_down.weight"].float())


@pytest.mark.parametrize("name", ["default", "char-1"])
def test_name_of_pefts_adapter_is_no_part_of_the_layer(write, random, name):
    tensors = {f"unet.{QUERY}.lora_A.{name}.weight": random(2, 6), f"unet.{QUERY}.lora_B.{name}.weight": random(5, 2)}
    assert torch.equal(load_layer(write(tensors)).down, random(2, 6))
    other = {key.replace(name, "other"): tensor for key, tensor in tensors.items()}
    with pytest.raises(ConceptError, match="appears twice"):
        load_concept(write(tensors | other), "mine", "mine")
