"""What the attention of each row may see in OMG's second stage, and what of the first is kept for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from costars.errors import SceneError
from costars.methods.paths import learned_words
from costars.methods.prompts import class_names, member_prompt, own_tokens, tokens_of
from costars.model.model import Model
from costars.sample.attention_cache import GivenCross, KeepCross, Kept
from costars.sample.attention_rules import BorrowLayout, KeptWords, Reach, both
from costars.sample.batch import positions_in
from costars.scene.options import TwoStage
from costars.types import AttentionRule, Job, Path


class Words(NamedTuple):
    """Token positions in a member's prompt: of its own words, and of the others' class words."""

    own: list[int]
    others: list[int]


def members_words(model: Model, job: Job) -> dict[str, Words]:
    """Where the words stand that do not reach everywhere, by member; a kind that does is empty.

    The others' are those of another class alone: what is said of one's own class is said of oneself.
    """
    scene, concepts, method = job.scene, job.concepts, job.scene.method
    assert isinstance(method, TwoStage)
    assert None not in (method.own_words_share, method.other_words_share), "a scene is settled before it is drawn"
    if not method.blend:
        return {}
    classes, tokenizer = class_names(scene, concepts), model.encoders[0].tokenizer
    words = {}
    for name in classes:
        concept, learned = concepts[name], learned_words(job, name)
        prompt, nouns = member_prompt(scene, name, classes, concept), {*classes.values()} - {classes[name]}
        own = own_tokens(tokenizer, scene, name, classes, concept, learned) if method.own_words_share else []
        others = tokens_of(tokenizer, prompt, nouns, learned) if method.other_words_share else []
        words[name] = Words(own, [i for i in others if i not in own])
    return words


def keeping(method: TwoStage, model: Model, start: int, of: int) -> KeepCross | None:
    """What keeps the layout's cross-attention in stage 1 for a stage 2 from step start on; None if it is replayed."""
    if method.attention_cache == "replay" or not method.layout_strength:
        return None
    if not method.blend:
        raise SceneError("method.attention_cache: without blending the attention is another prompt's; use replay")
    device = model.device if method.attention_cache == "device" else torch.device("cpu")
    return KeepCross(0, max(start, replayed(method, of)), math.ceil(method.layout_strength * of), device)


def replayed(method: TwoStage, of: int) -> int:
    """The first of so many steps in which the layout need not be replayed, if its cross-attention was kept."""
    return math.ceil(method.self_attention_share * method.layout_strength * of)


def stretches(
    method: TwoStage, paths: Sequence[Path], start: int, of: int, kept: Kept
) -> list[tuple[Sequence[Path], int, int]]:
    """(paths, first step, stop) one after the other: with the layout's replay, and without once it was kept.

    Raises SceneError where it should have been kept and was not.
    """
    if method.attention_cache == "replay" or not method.layout_strength:
        return [(paths, start, of)]
    turn = min(of, max(start, replayed(method, of)))
    wanted = set(range(turn, min(of, math.ceil(method.layout_strength * of))))
    if not wanted <= {step for step, _ in kept}:
        raise SceneError(
            f"method.attention_cache: {method.attention_cache!r} needs the layout drawn in the same run and from "
            "the same start; use replay for a plan from a folder"
        )
    return [(paths, start, turn), (paths[1:], turn, of)]


def rule_of(
    method: TwoStage,
    size_px: tuple[int, int],
    paths: Sequence[Path],
    words: Mapping[str, Words],
    shares: Tensor,
    kept: Kept,
) -> AttentionRule | None:
    """The global row attends as the layout's does; each member's own words keep to its share (k, h, w), others out."""
    rules: list[AttentionRule] = []
    if paths[0].replay is not None:
        rules.append(_borrowing(method, size_px))
    elif kept and method.layout_strength:
        rules.append(GivenCross(0, kept, method.layout_strength))
    members = {i: p for i, p in enumerate(paths) if p.replay is None and not p.controlled}
    reaches = dict[int, list[Reach]]()
    for (i, path), part in zip(members.items(), shares, strict=True) if words else ():
        own, others = (positions_in(paths, path.text, tokens) for tokens in words[path.name])
        each = [(own, part, method.own_words_share), (others, 1 - part, method.other_words_share)]
        reaches[i] = [Reach(tokens, of, share) for tokens, of, share in each if tokens and share]
    if any(reaches.values()):
        rules.append(KeptWords(reaches))
    return reduce(both, rules) if rules else None


def _borrowing(method: TwoStage, size_px: tuple[int, int]) -> BorrowLayout:
    """The global row (1) borrows from the layout's (0), as far as the method's strength says."""
    width, height = size_px
    cell = method.self_attention_cell_px
    return BorrowLayout(
        source=0,
        target=1,
        cross_share=method.layout_strength,
        self_share=method.self_attention_share * method.layout_strength,
        self_tokens=-(-width // cell) * -(-height // cell),
    )
