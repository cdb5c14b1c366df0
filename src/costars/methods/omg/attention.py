"""What the attention of each row may see in OMG's second stage, and what of the first is cached for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

from torch import Tensor

from costars.errors import SceneError
from costars.methods.encode import learned_words
from costars.methods.omg.options import TwoStage
from costars.methods.prompts import own_tokens, word_tokens
from costars.resolved_scene import ResolvedScene
from costars.sample.attention_cache import CacheCross, CachedAttention, UseCachedCross
from costars.sample.attention_rules import ReplaceAttention, TokenMask, TokenReach, chain_rules
from costars.sample.batch import conditional_rows
from costars.types import AttentionRule, DenoisingPath


class LimitedWords(NamedTuple):
    """Token positions in a member's prompt: of its own words, and of the class words of other members."""

    own: list[int]
    others: list[int]


def limited_words(resolved: ResolvedScene) -> dict[str, LimitedWords]:
    """{member: the words that do not reach the whole picture}; a kind that does is empty.

    Of the others only words of another class count: what is said of a member's own class is said of it too.
    """
    options = resolved.options
    if not options.blend:
        return {}
    tokenizer, nouns = resolved.model.encoders[0].tokenizer, resolved.nouns
    words = {}
    for name, member in resolved.members.items():
        learned = learned_words(resolved, member)
        other_nouns = {*nouns.values()} - {member.noun}
        own = own_tokens(tokenizer, resolved, member, learned) if options.own_words_share else []
        others = word_tokens(tokenizer, member.prompt, other_nouns, learned) if options.other_words_share else []
        words[name] = LimitedWords(own, [i for i in others if i not in own])
    return words


def attention_cache(resolved: ResolvedScene, start: int, of: int) -> CacheCross | None:
    """What caches the layout's cross-attention in stage 1 for a stage 2 from step start on; None if it is replayed."""
    options = resolved.options
    if options.attention_cache == "replay" or not options.cross_replace_steps:
        return None
    if not options.blend:
        raise SceneError(
            f"method.attention_cache {options.attention_cache!r} needs method.blend: without it stage 2 uses "
            "another prompt than the layout; set method.attention_cache=replay, or method.blend=true"
        )
    first = max(start, end_of_share(options.self_replace_steps, of))
    return CacheCross(0, first, end_of_share(options.cross_replace_steps, of))


def end_of_share(share: float, of: int) -> int:
    """The first of so many steps that is not in this share of them: a rule acts while i / of < share."""
    return next((i for i in range(of) if i / of >= share), of)


class Segment(NamedTuple):
    """Steps first to stop of stage 2, with the same paths; cached is the layout's attention where it was cached."""

    paths: Sequence[DenoisingPath]
    first: int
    stop: int
    cached: CachedAttention


def denoising_segments(
    options: TwoStage, paths: Sequence[DenoisingPath], start: int, of: int, cached: CachedAttention
) -> list[Segment]:
    """The segments one after the other: with the layout's row, with its cached attention, and without the layout.

    Raises SceneError where attention should have been cached and was not.
    """
    others = [path for path in paths if path.replay is None]
    self_end, cross_end = (
        max(start, end_of_share(share, of)) for share in (options.self_replace_steps, options.cross_replace_steps)
    )
    row_end = self_end if options.attention_cache == "device" and options.cross_replace_steps else cross_end
    row_end = max(row_end, self_end)
    if not set(range(row_end, cross_end)) <= {step for step, _ in cached}:
        raise SceneError(
            f"method.attention_cache {options.attention_cache!r} needs a layout that was drawn in the same run with "
            "the same start, and whose picture is not yet drawn; set method.attention_cache=replay for other plans"
        )
    segments = (
        Segment(paths, start, row_end, {}),
        Segment(others, row_end, cross_end, cached),
        Segment(others, max(row_end, cross_end), of, {}),
    )
    return [segment for segment in segments if segment.first < segment.stop]


def stage2_rule(
    resolved: ResolvedScene, segment: Segment, words: Mapping[str, LimitedWords], shares: Tensor
) -> AttentionRule | None:
    """The global row uses the layout's attention; a member's words are limited to its share (k, h, w)."""
    options, paths, rules = resolved.options, segment.paths, list[AttentionRule]()
    if paths[0].replay is not None:
        rules.append(_layout_attention(options, resolved.size_px))
    elif segment.cached:
        rules.append(UseCachedCross(0, segment.cached, options.cross_replace_steps))
    numbered = zip(conditional_rows(paths), paths, strict=True)
    members = {i: p for i, p in numbered if p.replay is None and not p.controlled}
    reaches = dict[int, list[TokenReach]]()
    for (i, path), part in zip(members.items(), shares, strict=True) if words else ():
        own, others = words[path.name]
        each = [(own, part, options.own_words_share), (others, 1 - part, options.other_words_share)]
        reaches[i] = [TokenReach(tokens, of, share) for tokens, of, share in each if tokens and share]
    if any(reaches.values()):
        rules.append(TokenMask(reaches))
    return reduce(chain_rules, rules) if rules else None


def _layout_attention(options: TwoStage, size_px: tuple[int, int]) -> ReplaceAttention:
    """The global row (1) uses the attention of the layout's (0)."""
    width, height = size_px
    cell = options.self_attention_cell_px
    return ReplaceAttention(
        source=0,
        target=1,
        cross_share=options.cross_replace_steps,
        self_share=options.self_replace_steps,
        self_tokens=-(-width // cell) * -(-height // cell),
    )
