"""ControlNets from disk, and what is refused."""

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from costars.errors import ModelError, SceneError
from costars.model.control import control_image, load_control_net


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A ControlNet for the tiny checkpoint, whose residuals are zero as those of every new one."""
    made = tmp_path_factory.mktemp("control")
    ControlNetModel.from_unet(tiny.unet, conditioning_channels=3).save_pretrained(made)
    return made


def test_a_control_net_is_loaded_frozen(tiny, folder):
    net = load_control_net(folder, "pose", tiny)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert net.config["cross_attention_dim"] == tiny.unet.config["cross_attention_dim"]


def test_one_of_another_family_is_refused_naming_both(tiny, folder, sd15_folder):
    net = ControlNetModel.from_pretrained(folder)
    net.register_to_config(cross_attention_dim=768)
    net.save_config(folder.parent / "other")
    (folder.parent / "other" / "diffusion_pytorch_model.safetensors").symlink_to(
        folder / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(ModelError, match=r"controls\.model 'pose': ") as caught:
        load_control_net(folder.parent / "other", "pose", tiny)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "nothing"])
def test_what_is_no_control_net_is_refused(tiny, golden, part):
    with pytest.raises(ModelError, match=r"controls\.model 'pose': no ControlNet in safetensors"):
        load_control_net(golden / "tiny-sdxl" / part, "pose", tiny)


def test_the_picture_is_brought_to_the_size_of_the_scene(tiny, tmp_path):
    Image.new("L", (30, 20), 255).save(tmp_path / "pose.png")
    image = control_image("pose.png", tmp_path, (64, 32), tiny)
    assert image.shape == (1, 3, 32, 64) and bool((image == 1).all()) and image.dtype is torch.float32


def test_a_picture_that_is_none_is_refused(tiny, tmp_path):
    (tmp_path / "pose.png").write_text("no picture")
    for name in ("pose.png", "gone.png"):
        with pytest.raises(SceneError, match=f"controls.image '{name}': cannot be read as a picture; check the path"):
            control_image(name, tmp_path, (64, 32), tiny)
