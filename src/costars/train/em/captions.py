"""Captions that name a subset of an image's concepts (union sampling, Break-a-Scene)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from costars.model.prompt_weighting import tokenize_words
from costars.model.text_encoder import TextEncoders
from costars.scene.prompt_syntax import escape_brackets
from costars.train.attention_maps import Columns
from costars.train.em.group_images import GroupImage
from costars.train.embeddings import TokenizedCaptions, tokenize_captions
from costars.train.recipe import EmConfig
from costars.train.task import TrainingTask
from costars.types import LearnedWords

Names = tuple[str, ...]


@dataclass(frozen=True)
class GroupCaptions:
    """Tokenized captions of all subsets of concepts that occur in an image.

    indices {names: index of their caption}; name_ids {concept: token ids of its trigger and class word}, of the first
    text encoder.
    """

    tokenized: TokenizedCaptions
    indices: Mapping[Names, int]
    name_ids: Mapping[str, tuple[int, ...]]

    def encode(
        self, encoders: TextEncoders, rows: Sequence[Names], embeddings: LearnedWords
    ) -> tuple[Tensor, Tensor | None]:
        """tokens (b, t, d) and pooled (b, d) of the captions that name these concepts, one row each."""
        return self.tokenized.encode(encoders, [self.indices[names] for names in rows], embeddings)

    def token_positions(self, rows: Sequence[Names]) -> Columns:
        """The token positions of each concept in the caption of its row."""
        prompts = self.tokenized.prompts[0]
        return [[prompts[self.indices[names]].find_spans(self.name_ids[name])[0] for name in names] for names in rows]


def tokenize_group_captions(task: TrainingTask, images: Sequence[GroupImage], em: EmConfig) -> GroupCaptions:
    """Tokenize the captions of all non-empty subsets of each image's concepts."""
    encoders, phrases = task.model.encoders, {s.name: f"{s.trigger_text} {s.class_name}" for s in task.subjects}
    captions = {
        names: make_caption(names, phrases, em.caption_template, image.background)
        for image in images
        for count in range(1, len(image.names) + 1)
        for names in combinations(image.names, count)
    }
    vectors, tokenizer = task.vectors_per_word, encoders[0].tokenizer
    return GroupCaptions(
        tokenize_captions(encoders, [*captions.values()], vectors),
        {names: index for index, names in enumerate(captions)},
        {name: tokenize_words(tokenizer, escape_brackets(phrase), vectors) for name, phrase in phrases.items()},
    )


def make_caption(names: Sequence[str], phrases: Mapping[str, str], template: str, background: str = "") -> str:
    """A caption with the phrases of these concepts, e.g. "a <ana> woman and a <rex> dog in a <m> park"."""
    foreground = [f"a {phrases[name]}" for name in names if name != background]
    *first, last = foreground or [""]
    caption = f"{', '.join(first)} and {last}" if first else last
    if background in names:
        caption = f"{caption} in a {phrases[background]}" if caption else f"a {phrases[background]}"
    return template.format(caption)
