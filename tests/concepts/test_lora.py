"""The change of weight that an adapter file means, against the formula of its kind."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from costars.concepts.load import load_concept
from costars.errors import ConceptError

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + QUERY.replace(".", "_")
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def change(entry) -> torch.Tensor:
    """up @ down, in the shape of the layer's weight."""
    return torch.einsum("or,r...->o...", entry.up.flatten(1), entry.down)


def only(path, **metadata):
    (entry,) = load_concept(path, "mine", "mine").adapter.values()
    return entry


@pytest.mark.parametrize("alpha", [1.0, 4.0, 0.5, None])
def test_lora_is_up_down_alpha_over_rank(write, random, alpha):
    down, up = random(3, 6), random(5, 3)
    tensors = {f"{FLAT}.lora_down.weight": down, f"{FLAT}.lora_up.weight": up}
    tensors |= {} if alpha is None else {f"{FLAT}.alpha": torch.tensor(alpha)}
    concept = load_concept(write(tensors), "mine", "mine")
    assert (list(concept.adapter), concept.format) == ([f"unet.{QUERY}"], "kohya")
    expected = up @ down * (1 if alpha is None else alpha / 3)
    assert torch.allclose(change(concept.adapter[f"unet.{QUERY}"]), expected, atol=1e-6)


def test_locon_is_the_product_over_the_rank_at_every_pixel_of_the_kernel(write, random):
    down, up = random(2, 6, 3, 3), random(5, 2, 1, 1)
    path = write({f"{CONV}.lora_down.weight": down, f"{CONV}.lora_up.weight": up, f"{CONV}.alpha": torch.tensor(1.0)})
    expected = torch.stack([sum(up[o, r, 0, 0] * down[r] for r in range(2)) for o in range(5)]) / 2
    assert torch.allclose(change(only(path)), expected, atol=1e-6)


def loha(stem, shapes, random, alpha=None):
    tensors = {
        f"{stem}.hada_w{i}_{side}": random(*shape, seed=10 * i)
        for i in (1, 2)
        for side, shape in zip("ab", shapes, strict=True)
    }
    return tensors | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)})


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(("out", "inside"), [(9, 5), (5, 9)])
def test_loha_is_the_hadamard_product_of_two_products(write, random, rank, out, inside):
    tensors = loha(FLAT, [(out, rank), (rank, inside)], random, alpha=2.0)
    concept = load_concept(write(tensors), "mine", "mine")
    entry = concept.adapter[f"unet.{QUERY}"]
    a1, b1, a2, b2 = (tensors[f"{FLAT}.hada_w{w}"] for w in ("1_a", "1_b", "2_a", "2_b"))
    assert torch.allclose(change(entry), (a1 @ b1) * (a2 @ b2) * 2 / rank, atol=1e-5)
    assert (len(entry.down), concept.format) == (min(rank * rank, out, inside), "LyCORIS LoHa")


@pytest.mark.parametrize(("name", "side"), [("conv1", 3), ("conv_shortcut", 1)])
def test_loha_of_a_convolution_has_its_kernel_laid_out_in_rows(write, random, name, side):
    stem = f"lora_unet_mid_block_resnets_0_{name}"
    tensors = loha(stem, [(5, 2), (2, 4 * side**2)], random)
    a1, b1, a2, b2 = (tensors[f"{stem}.hada_w{w}"] for w in ("1_a", "1_b", "2_a", "2_b"))
    entry = only(write(tensors))
    assert entry.down.shape[1:] == (4, side, side) and entry.up.shape[2:] == (1, 1)
    assert torch.allclose(change(entry), ((a1 @ b1) * (a2 @ b2)).view(5, 4, side, side), atol=1e-5)


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
def test_a_layer_has_the_axes_of_its_kind_however_the_file_holds_it(
    write, random, stem, metadata, axes, down_axes, up_axes
):
    down, up = random(2, 6), random(5, 2)
    tensors = {
        f"{stem}.lora_down.weight": down[(...,) + (None,) * (down_axes - 2)],
        f"{stem}.lora_up.weight": up[(...,) + (None,) * (up_axes - 2)],
    }
    entry = only(write(tensors, **metadata))
    assert entry.down.ndim == entry.up.ndim == axes
    assert torch.equal(change(entry).flatten(), (up @ down).flatten())


def test_a_projection_of_no_known_family_is_left_as_it_is(write, random):
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    for axes in (2, 4):
        more = (None,) * (axes - 2)
        tensors = {
            f"{stem}.lora_down.weight": random(2, 6)[(..., *more)],
            f"{stem}.lora_up.weight": random(5, 2)[(..., *more)],
        }
        assert only(write(tensors)).down.ndim == axes


def test_the_golden_kohya_files_are_what_diffusers_makes_of_them(loras, pipeline):
    """Every layer, as its change of weight; `style_kohya` has both text encoders."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    for name in ("char_a", "char_b", "char_c_kohya", "style_kohya"):
        adapter = load_concept(loras / f"{name}.safetensors", name, name).adapter
        pipeline.load_lora_weights(loras / f"{name}.safetensors", adapter_name=name)
        expected = {}
        for part, module in parts.items():
            for path, layer in module.named_modules():
                if name in getattr(layer, "lora_A", {}):
                    own = path if part == "unet" or path.startswith("text_") else f"text_model.{path}"
                    expected[f"{part}.{own}"] = layer.get_delta_weight(name)
        assert set(adapter) == set(expected) and len(adapter) > 160
        for path, delta in expected.items():
            assert torch.allclose(change(adapter[path]), delta, atol=1e-6), path
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("wrapped", ["", "unet."])
@pytest.mark.parametrize("alpha", [2, 8])
def test_pefts_own_file_has_its_alpha_beside_it(tmp_path, wrapped, alpha):
    """Saved by peft itself; a layer's change is what peft would add to its weight."""
    layer = torch.nn.Sequential()
    layer.mid_block = torch.nn.Linear(6, 5)
    layer.to_out = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["mid_block", "0"], init_lora_weights=False)
    model = get_peft_model(layer, config)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.") for key in saved)
    renamed = {
        key.replace("base_model.model.mid_block", f"base_model.model.{wrapped}{QUERY}").replace(
            "base_model.model.to_out.0", f"base_model.model.{wrapped}down_blocks.0.resnets.0.conv1"
        ): value
        for key, value in saved.items()
    }
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    concept = load_concept(tmp_path / "adapter_model.safetensors", "mine", "mine")
    assert concept.format == "peft"
    linear, conv = model.base_model.model.mid_block, model.base_model.model.to_out[0]
    assert torch.allclose(change(concept.adapter[f"unet.{QUERY}"]), linear.get_delta_weight("default"), atol=1e-6)
    own = change(concept.adapter["unet.down_blocks.0.resnets.0.conv1"])
    assert torch.allclose(own, conv.get_delta_weight("default"), atol=1e-6)


def test_pefts_file_alone_has_the_scale_1(write, random):
    down, up = random(2, 6), random(5, 2)
    stem = f"base_model.model.{QUERY}"
    entry = only(write({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}))
    assert torch.equal(entry.down, down) and torch.equal(entry.up, up)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA': of peft's kinds costars applies LORA alone"),
        ({"use_dora": True}, "its option 'unet.use_dora' is set, which costars cannot apply"),
        ({"use_rslora": True}, "its option 'unet.use_rslora' is set"),
        ({"alpha_pattern": {"to_q": 3}}, "its option 'unet.alpha_pattern' is set"),
        ({"lora_alpha": "high"}, "its option 'unet.lora_alpha' is 'high', want a number below 1e+06"),
        ({"lora_alpha": 10**400}, "its option 'unet.lora_alpha' is '1000000"),
        ({"lora_alpha": float("nan")}, "its option 'unet.lora_alpha' is 'nan'"),
        ({"lora_alpha": True}, "its option 'unet.lora_alpha' is 'True'"),
        ([], "adapter_config.json: it is not a JSON object"),
    ],
)
def test_options_of_peft_that_change_the_factors_are_refused(write, tmp_path, random, options, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    stem = f"base_model.model.{QUERY}"
    path = write({f"{stem}.lora_A.weight": random(2, 6), f"{stem}.lora_B.weight": random(5, 2)})
    with pytest.raises(ConceptError) as caught:
        load_concept(path, "mine", "mine")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_rank_of_its_own_for_a_layer_is_the_rank_that_alpha_is_divided_by(write, random):
    """As in peft: rank_pattern changes the rank of a layer and with it its scale."""
    layer = torch.nn.Sequential()
    layer.to_q = torch.nn.Linear(6, 5)
    config = LoraConfig(r=2, lora_alpha=6, rank_pattern={"to_q": 3}, target_modules=["to_q"], init_lora_weights=False)
    model = get_peft_model(layer, config)
    saved = get_peft_model_state_dict(model)
    tensors = {key.replace("base_model.model.to_q", f"unet.{QUERY}"): value for key, value in saved.items()}
    facts = json.dumps({"unet.r": 2, "unet.lora_alpha": 6, "unet.rank_pattern": {"to_q": 3}})
    entry = only(write(tensors, lora_adapter_metadata=facts))
    assert torch.allclose(change(entry), model.base_model.model.to_q.get_delta_weight("default"), atol=1e-6)


LORA = ("lora_down.weight", "lora_up.weight", "alpha")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@pytest.mark.parametrize(
    ("names", "shapes", "said"),
    [
        (LORA, [(2, 6)], "has the factors down, want both of a LoRA or all of a LoHa"),
        (LORA[2:], [()], "has the factors none, want both"),
        (LOHA, [(5, 2), (2, 6)], "has the factors w1_a, w1_b, want both"),
        (LORA, [(2, 6), (5, 3)], "has factors of shapes (2, 6) and (5, 3)"),
        (LORA, [(2, 6), (5, 2, 3, 3)], "has factors of shapes (2, 6) and (5, 2, 3, 3)"),
        (LORA, [(2,), (5, 2)], "has factors of shapes (2,) and (5, 2)"),
        (LORA, [(0, 6), (5, 0)], "has factors of shapes (0, 6) and (5, 0): a rank of 0, want 1 to 4096"),
        (LORA, [(4097, 1), (1, 4097)], "has factors of shapes (4097, 1) and (1, 4097): a rank of 4097, want 1 to 4096"),
        (LORA, [(2, 6), (5, 2), (2,)], "has an alpha of shape (2,), want one number"),
        (LOHA, [(5, 2), (2, 6), (4, 2), (2, 6)], "has factors of shapes [(5, 2), (2, 6), (4, 2), (2, 6)]"),
        (LOHA, [(5, 2), (3, 6), (5, 2), (2, 6)], "has factors of shapes [(5, 2), (3, 6), (5, 2), (2, 6)]"),
        (LOHA, [(5,), (2, 6), (5, 2), (2, 6)], "has factors of shapes [(5,), (2, 6), (5, 2), (2, 6)]"),
        (LOHA, [(5, 0), (0, 6), (5, 2), (2, 6)], "has factors of shapes [(5, 0), (0, 6), (5, 2), (2, 6)]"),
    ],
)
def test_factors_that_do_not_fit_each_other_are_refused(write, names, shapes, said):
    tensors = {f"{FLAT}.{name}": torch.ones(shape) for name, shape in zip(names, shapes, strict=False)}
    with pytest.raises(ConceptError) as caught:
        load_concept(write(tensors), "mine", "mine")
    assert f"mine: 'unet.{QUERY}' {said}" in str(caught.value)
    assert str(caught.value).endswith("fetch the file again") and "\n" not in str(caught.value)


def test_a_loha_that_would_unfold_to_more_than_a_layer_can_hold_is_refused(write):
    shapes = zip(LOHA, 2 * [(2**14, 128), (128, 2**14)], strict=True)
    tensors = {f"{FLAT}.{name}": torch.zeros(shape, dtype=torch.float16) for name, shape in shapes}
    with pytest.raises(ConceptError, match="which would become over 268435456 numbers; fetch the file again"):
        load_concept(write(tensors), "mine", "mine")


def test_a_loha_that_is_no_kernel_of_its_convolution_is_refused(write, random):
    with pytest.raises(ConceptError, match="for a kernel of 3 x 3; fetch the file again"):
        load_concept(write(loha(CONV, [(5, 2), (2, 10)], random)), "mine", "mine")


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_numbers_that_are_not_finite_are_refused(write, odd, key):
    tensors = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.ones(5, 2), "alpha": torch.ones(())}
    tensors[key].view(-1)[0] = odd
    with pytest.raises(ConceptError, match="holds numbers that are not finite, as from a training that failed"):
        load_concept(write({f"{FLAT}.{k}": t for k, t in tensors.items()}), "mine", "mine")


def test_one_layer_by_two_names_is_refused(write, random):
    stems = (FLAT, "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")
    tensors = {f"{s}.lora_{side}.weight": random(2, 2) for s in stems for side in ("down", "up")}
    with pytest.raises(ConceptError, match=rf"mine: holds 'unet.{QUERY}' twice, once as 'lora_unet_mid"):
        load_concept(write(tensors), "mine", "mine")
