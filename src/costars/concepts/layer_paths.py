"""The layers that an adapter can change: their module paths, with dots or underscores, and their weight shapes."""

from __future__ import annotations

import re

from costars.model.families import FAMILIES

# All components of the paths, most with underscores of their own: first of diffusers, then of the sgm UNet,
# of norms, and of OpenCLIP.
_COMPONENTS = (
    "down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks attn1 attn2 "
    "to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_in conv_out conv_shortcut "
    "time_emb_proj time_embedding add_embedding linear_1 linear_2 "
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection "
    "input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op out "
    "time_embed label_emb norm norm1 norm2 norm3 layer_norm1 layer_norm2 final_layer_norm conv_norm_out "
    "transformer resblocks attn c_fc c_proj ln_1 ln_2"
).split()
_COMPONENT = re.compile(rf"(?:{'|'.join(sorted(_COMPONENTS, key=len, reverse=True))}|\d+)(?=_|$)")

UNET_LAYER = re.compile(
    r"""(?:(?:down|up)_blocks\.[0-3]|mid_block)\.
        (?: attentions\.\d+\.
            (?: proj_in | proj_out | norm
              | transformer_blocks\.\d+\.(?:attn[12]\.(?:to_[qkv]|to_out\.0) | ff\.net\.(?:0\.proj|2) | norm[123]) )
          | resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj|norm[12])
          | (?:down|up)samplers\.0\.conv )
      | conv_in | conv_out | conv_norm_out | (?:time|add)_embedding\.linear_[12]""",
    re.VERBOSE,
)
TEXT_LAYER = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12]|layer_norm[12])"
    r"|text_model\.final_layer_norm|text_projection",
)

_LINEAR = re.compile(
    r"\.(to_[qkv]|to_out\.0|ff\.net\.(0\.proj|2)|time_emb_proj|linear_[12]|(q|k|v|out)_proj|fc[12]|text_projection)$",
)
_CONV = re.compile(r"\.(conv|conv1|conv2|conv_in|conv_out|conv_shortcut)$")
_PROJECTION = re.compile(r"\.proj_(in|out)$")


def split_underscores(flat: str) -> str | None:
    """Turn mid_block_attentions_0_proj_in into mid_block.attentions.0.proj_in; None if a component is unknown."""
    components, position = list[str](), 0
    while position < len(flat):
        match = _COMPONENT.match(flat, position)
        if match is None:
            return None
        components.append(match[0])
        position = match.end() + 1
    return ".".join(components)


def weight_axes(path: str, family: str) -> int | None:
    """Number of axes of a layer's weight: 2 for a linear layer, 4 for a convolution, None if it cannot be known."""
    if _PROJECTION.search(path):
        known = FAMILIES.get(family)
        return None if known is None else 2 if known.linear_projections else 4
    if _CONV.search(path):
        return 4
    return 2 if _LINEAR.search(path) else None


def kernel_size(path: str) -> int:
    """Side length of a layer's kernel in cells; 1 for a linear layer."""
    return 3 if _CONV.search(path) and not path.endswith("conv_shortcut") else 1
