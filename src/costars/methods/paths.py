"""The paths of the denoising: the text, adapter and ControlNets of each."""

from __future__ import annotations

from collections.abc import Sequence

from costars.methods.encode import encode_negative, encode_prompt, learned_words
from costars.methods.prompts import everyone_prompt
from costars.model.adapters import concatenate_adapters, scale_adapter
from costars.model.lora import text_adapter
from costars.resolved_scene import Member, ResolvedScene
from costars.types import Adapter, DenoisingPath

EVERYONE, STYLE = "{}", "{style}"  # names of the cast's and the style's adapter; no member can have them


def member_adapter(resolved: ResolvedScene, member: Member) -> Adapter:
    """A member's adapter at its weight; a style's is added at its weight for members."""
    own = scale_adapter(member.concept.adapter, member.weight)
    if resolved.style is None or resolved.scene.style is None:
        return own
    return concatenate_adapters([own, scale_adapter(resolved.style.adapter, resolved.scene.style.member_weight)])


def style_adapter(resolved: ResolvedScene) -> dict[str, Adapter]:
    """The style's adapter for the paths without an identity; empty without a style."""
    if resolved.style is None or resolved.scene.style is None:
        return {}
    return {STYLE: scale_adapter(resolved.style.adapter, resolved.scene.style.weight)}


def everyone_adapter(resolved: ResolvedScene) -> Adapter:
    """The adapters of all members and of the style in one."""
    own = [scale_adapter(member.concept.adapter, member.weight) for member in resolved.cast]
    return concatenate_adapters([*own, *style_adapter(resolved).values()])


def global_path(resolved: ResolvedScene, prompt: str, words: Sequence[str] = ()) -> DenoisingPath:
    """The path of a prompt without identities, under the style's adapter if there is one."""
    styles, learned = style_adapter(resolved), learned_words(resolved)
    with text_adapter(resolved.model.encoders, styles.get(STYLE, {})):
        text = encode_prompt(resolved, prompt, words, learned)
        negative = encode_negative(resolved, learned=learned)
    return DenoisingPath("global", text, negative, STYLE if styles else None, controlled=True)


def everyone_path(resolved: ResolvedScene, adapter: Adapter) -> DenoisingPath:
    """One path with the own words of every member, under the adapter of them all."""
    learned = learned_words(resolved, *resolved.cast)
    with text_adapter(resolved.model.encoders, adapter):
        text = encode_prompt(resolved, everyone_prompt(resolved), learned=learned)
        negative = encode_negative(resolved, learned=learned)
    return DenoisingPath("everyone", text, negative, adapter=EVERYONE, controlled=True)


def member_path(resolved: ResolvedScene, member: Member, adapter: Adapter) -> DenoisingPath:
    """A member's own prompt under its own adapter."""
    learned = learned_words(resolved, member)
    with text_adapter(resolved.model.encoders, adapter):
        negative = encode_negative(resolved, member.negative_prompt, learned)
        text = encode_prompt(resolved, member.prompt, learned=learned)
    return DenoisingPath(member.name, text, negative, adapter=member.name)
