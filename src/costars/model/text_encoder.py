"""Prompts to text features, and the token positions of each word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.errors import SceneError
from costars.model.families import TextEncoderSpec
from costars.model.prompt_weighting import ParsedPrompt, parse_prompt, tokenize_words
from costars.scene.prompt_syntax import escape_brackets
from costars.types import LearnedWords, Text


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer; spec says what is read from it."""

    spec: TextEncoderSpec
    tokenizer: CLIPTokenizer
    module: CLIPTextModel | CLIPTextModelWithProjection

    @property
    def name(self) -> str:
        """The name of the part in diffusers folders and in adapter files."""
        return self.spec.name


# As AUTOMATIC1111 and Forge name their implementations ("Original", "No norm", "Ignore", "None").
Emphasis = Literal["original", "no_norm", "ignore", "none"]
TextEncoders = tuple[TextEncoder, ...]
NO_LEARNED_WORDS: LearnedWords = MappingProxyType({})
# Limit of the factor that restores a mean. Ours: beyond it, features of both signs cancel, and their mean says nothing
# about their size.
MAX_MEAN_FACTOR = 2.0


@torch.no_grad()
def encode_text(
    encoders: TextEncoders,
    prompt: str,
    words: Sequence[str],
    device: torch.device,
    clip_skip: int | None = None,
    learned: LearnedWords = NO_LEARNED_WORDS,
    emphasis: Emphasis = "no_norm",
) -> Text:
    """Encode a prompt: tokens (l, t, d), pooled (1, d) or None, and the spans of these words, which are plain text.

    t is 77 for each chunk of the prompt; l is 1, or the number of layers of a learned word (ED-LoRA). The weight of a
    token multiplies its features; with "original" the mean over each encoder's chunk is then restored, as in
    AUTOMATIC1111 (see `weight_features`); "ignore" drops all weights, and with "none" the prompt is plain text. Raises
    SceneError for a prompt that is too long.
    """
    vectors, plain = count_vectors(learned), emphasis == "none"
    # All tokenizers split words alike.
    parsed = [parse_prompt(e.tokenizer, prompt, vectors, plain=plain) for e in encoders]
    layers = max((len(v) for parts in learned.values() for v in parts.values()), default=1)
    tokens, pooled = [], []
    for chunk in range(len(parsed[0].ids)):
        ids = [p.ids[chunk : chunk + 1].to(device).expand(layers, -1) for p in parsed]
        with ExitStack() as stack:
            for encoder, own in zip(encoders, parsed, strict=True):
                stack.enter_context(_insert_learned(encoder, own, chunk, learned))
            chunk_tokens, chunk_pooled = encode_ids(encoders, ids, clip_skip)
        tokens.append(chunk_tokens)
        pooled.append(None if chunk_pooled is None else chunk_pooled[:1])
    spans = {w: parsed[0].find_spans(_tokenize_plain(encoders[0].tokenizer, w, vectors)) for w in words}
    features, weights = torch.cat(tokens, dim=1), parsed[0].weights.to(device)
    if emphasis in ("original", "no_norm"):
        widths = [e.module.config.hidden_size for e in encoders]
        features = weight_features(features, weights, widths, restore_mean=emphasis == "original")
    return Text(prompt, features, pooled[0], spans)


def zero_features(text: Text) -> Text:
    """The text with zeros for all features: what diffusers gives for no negative prompt (force_zeros_...)."""
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return Text(text.prompt, torch.zeros_like(text.tokens), pooled, text.spans)


def _tokenize_plain(tokenizer: CLIPTokenizer, words: str, vectors: Mapping[str, int]) -> tuple[int, ...]:
    return tokenize_words(tokenizer, escape_brackets(words), vectors)


def count_vectors(learned: LearnedWords) -> dict[str, int]:
    """{word: number of vectors that replace it}."""
    return {word: next(iter(parts.values())).shape[1] for word, parts in learned.items()}


@contextmanager
def _insert_learned(encoder: TextEncoder, prompt: ParsedPrompt, chunk: int, learned: LearnedWords) -> Iterator[None]:
    """Within the block the encoder embeds the learned words of this chunk as their vectors.

    Raises SceneError for a word that has no vectors for this encoder.
    """
    length, at = prompt.ids.shape[1], {}
    for position, word, which in prompt.learned:
        if encoder.name not in learned[word]:
            raise SceneError(
                f"prompt: learned word {word!r} has no vectors for the model's {encoder.name}; "
                "use a concept of the model's family"
            )
        if position // length == chunk:
            at[position % length] = learned[word][encoder.name][:, which]

    def insert(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        for column, vector in at.items():
            output[:, column] = vector.to(output)
        return output

    handle = encoder.module.get_input_embeddings().register_forward_hook(insert)
    try:
        yield
    finally:
        handle.remove()


def weight_features(tokens: Tensor, weights: Tensor, widths: Sequence[int], restore_mean: bool) -> Tensor:
    """Features (l, n * t, d) of n chunks times the weights (n, t); widths are those of the encoders side by side in d.

    restore_mean multiplies the features of each chunk and encoder by one factor, so that their mean is as before, as
    AUTOMATIC1111 does; the factor is at most MAX_MEAN_FACTOR and at least its inverse. It also changes tokens without
    emphasis. A chunk without emphasis is returned unchanged.
    """
    chunks = zip(tokens.split(weights.shape[1], dim=1), weights, strict=True)
    return torch.cat([_weight_chunk(c, own, widths, restore_mean) for c, own in chunks], dim=1)


def _weight_chunk(chunk: Tensor, weights: Tensor, widths: Sequence[int], restore_mean: bool) -> Tensor:
    if bool((weights == 1).all()):
        return chunk
    plain = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
    weighted = plain * weights.view(1, -1, 1)
    if restore_mean:
        pairs = zip(plain.split(list(widths), dim=-1), weighted.split(list(widths), dim=-1), strict=True)
        weighted = torch.cat([own * _mean_factor(before, own) for before, own in pairs], dim=-1)
    return weighted.to(chunk.dtype)


def _mean_factor(before: Tensor, after: Tensor) -> Tensor:
    """(l, 1, 1) factor that brings the size of a mean back, within its limits."""
    factor = before.mean(dim=(1, 2), keepdim=True).abs() / after.mean(dim=(1, 2), keepdim=True).abs()
    return factor.nan_to_num(1.0).clamp(1 / MAX_MEAN_FACTOR, MAX_MEAN_FACTOR)


def encode_ids(
    encoders: TextEncoders, ids: Sequence[Tensor], clip_skip: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Features (n, t, d) of all encoders side by side and pooled (n, d) or None, from the (n, t) ids of each encoder.

    clip_skip counts hidden layers from the end (1 is the last); None reads the layer of the encoder's family.
    """
    tokens, pooled = [], None
    for encoder, own in zip(encoders, ids, strict=True):
        output = encoder.module(own, output_hidden_states=True)
        hidden = output.hidden_states[-(clip_skip or encoder.spec.layer)]
        tokens.append(_final_norm(encoder.module)(hidden) if encoder.spec.final_norm else hidden)
        if encoder.spec.pooled:
            pooled = output.text_embeds
    return torch.cat(tokens, dim=-1), pooled


def _final_norm(module: CLIPTextModel) -> torch.nn.Module:
    """transformers 5 removed the text_model level of CLIPTextModel."""
    norm: torch.nn.Module = getattr(module, "text_model", module).final_layer_norm
    return norm


def find_word_spans(
    tokenizer: CLIPTokenizer, prompt: str, word: str, learned: LearnedWords = NO_LEARNED_WORDS
) -> tuple[tuple[int, ...], ...]:
    """Token positions of every occurrence of a word or phrase, written as in a prompt, in the prompt's order."""
    vectors = count_vectors(learned)
    return parse_prompt(tokenizer, prompt, vectors).find_spans(tokenize_words(tokenizer, word, vectors))
