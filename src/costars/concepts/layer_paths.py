"""The layers that an adapter may change, and their names when every dot was made an underscore."""

from __future__ import annotations

import re

from costars.model.families import FAMILIES

# Parts of a path that hold underscores of their own, diffusers' first, then those of the sgm UNet.
_WORDS = (
    "down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks attn1 attn2 "
    "to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_in conv_out conv_shortcut "
    "time_emb_proj time_embedding add_embedding linear_1 linear_2 "
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection "
    "input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op out "
    "time_embed label_emb"
).split()
_WORD = re.compile(rf"(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))}|\d+)(?=_|$)")

UNET = re.compile(
    r"""(?:(?:down|up)_blocks\.[0-3]|mid_block)\.
        (?: attentions\.\d+\.
            (?: proj_in | proj_out
              | transformer_blocks\.\d+\.(?:attn[12]\.(?:to_[qkv]|to_out\.0) | ff\.net\.(?:0\.proj|2)) )
          | resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)
          | (?:down|up)samplers\.0\.conv )
      | conv_in | conv_out | (?:time|add)_embedding\.linear_[12]""",
    re.VERBOSE,
)
TEXT = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])|text_projection",
)

_LINEAR = re.compile(
    r"\.(to_[qkv]|to_out\.0|ff\.net\.(0\.proj|2)|time_emb_proj|linear_[12]|(q|k|v|out)_proj|fc[12]|text_projection)$",
)
_CONV = re.compile(r"\.(conv|conv1|conv2|conv_in|conv_out|conv_shortcut)$")
_PROJECTION = re.compile(r"\.proj_(in|out)$")


def dotted(flat: str) -> str | None:
    """a_path_in_underscores as a.path; None where a part of it is not known."""
    words, at = list[str](), 0
    while at < len(flat):
        found = _WORD.match(flat, at)
        if found is None:
            return None
        words.append(found[0])
        at = found.end() + 1
    return ".".join(words)


def weight_axes(path: str, family: str) -> int | None:
    """2 for a linear layer, 4 for a convolution; None where the path and the family do not tell."""
    if _PROJECTION.search(path):
        return None if family not in FAMILIES else 2 if FAMILIES[family].linear_projections else 4
    if _CONV.search(path):
        return 4
    return 2 if _LINEAR.search(path) else None


def kernel_size(path: str) -> int:
    """Side of a layer's kernel; 1 for a linear layer."""
    return 3 if _CONV.search(path) and not path.endswith("conv_shortcut") else 1
