"""ControlNets: loading, images, and rejected ones."""

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from costars.errors import ModelError, SceneError
from costars.model.controlnet import check_controlnet, load_control_image, load_controlnet


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A ControlNet for the tiny checkpoint, whose residuals are zero as those of every new one."""
    made = tmp_path_factory.mktemp("control")
    ControlNetModel.from_unet(tiny.unet, conditioning_channels=3).save_pretrained(made)
    return made


def test_controlnet_is_loaded_frozen(tiny, folder):
    net = load_controlnet(folder, "pose", tiny)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert net.config["cross_attention_dim"] == tiny.unet.config["cross_attention_dim"]


@pytest.mark.parametrize("part", ["unet", "nothing"])
def test_other_folder_is_rejected(tiny, golden, part):
    with pytest.raises(ModelError, match=r"controls\.model 'pose': no ControlNet with \.safetensors weights"):
        load_controlnet(golden / "tiny-sdxl" / part, "pose", tiny)


def test_control_image_is_resized_to_the_scene(tiny, tmp_path):
    Image.new("L", (30, 15), 255).save(tmp_path / "pose.png")
    image = load_control_image(str(tmp_path / "pose.png"), (64, 32), tiny)
    assert image.shape == (1, 3, 32, 64) and bool((image == 1).all()) and image.dtype is torch.float32


def test_unreadable_control_image_is_rejected(tiny, tmp_path):
    (tmp_path / "pose.png").write_text("no picture")
    for name in ("pose.png", "gone.png"):
        with pytest.raises(SceneError, match=f"controls.image '.*{name}': cannot be read"):
            load_control_image(str(tmp_path / name), (64, 32), tiny)


def test_control_image_of_other_aspect_ratio_is_rejected(tiny, tmp_path):
    Image.new("L", (200, 50)).save(tmp_path / "pose.png")
    with pytest.raises(SceneError, match="is 200 x 50 px, but the picture is 64 x 64 px; give one"):
        load_control_image(str(tmp_path / "pose.png"), (64, 64), tiny)


def test_controlnet_of_other_family_is_rejected(tiny, folder):
    net = load_controlnet(folder, "pose", tiny)
    check_controlnet(net, "pose", tiny)
    net.register_to_config(cross_attention_dim=768)
    with pytest.raises(ModelError, match=r"reads text of width 768, but the model 'tiny' .sdxl. of 64; use"):
        check_controlnet(net, "pose", tiny)
