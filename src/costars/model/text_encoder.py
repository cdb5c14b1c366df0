"""Prompts to text features, and the token positions of each word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.errors import SceneError
from costars.model.families import TextEncoderSpec
from costars.model.prompt_weighting import ParsedPrompt, parse_prompt, tokenize_words
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


TextEncoders = tuple[TextEncoder, ...]
NO_LEARNED_WORDS: LearnedWords = MappingProxyType({})


@torch.no_grad()
def encode_text(
    encoders: TextEncoders,
    prompt: str,
    words: Sequence[str],
    device: torch.device,
    clip_skip: int | None = None,
    learned: LearnedWords = NO_LEARNED_WORDS,
) -> Text:
    """Encode a prompt: tokens (l, t, d), pooled (1, d) or None, and the spans of these words.

    t is 77 for each chunk of the prompt; l is 1, or the number of layers of a learned word (ED-LoRA). Weights multiply
    the features, then the mean of the chunk is restored, as AUTOMATIC1111 does for each encoder. Raises SceneError for
    a prompt that is too long.
    """
    vectors = count_vectors(learned)
    parsed = [parse_prompt(e.tokenizer, prompt, vectors) for e in encoders]  # all tokenizers split words alike
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
    spans = {w: parsed[0].find_spans(tokenize_words(encoders[0].tokenizer, w, vectors)) for w in words}
    weighted = _apply_weights(torch.cat(tokens, dim=1), parsed[0].weights.to(device))
    return Text(prompt, weighted, pooled[0], spans)


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


def _apply_weights(tokens: Tensor, weights: Tensor) -> Tensor:
    """Weight the chunks of (l, t, d) features one by one; a chunk without emphasis is returned unchanged."""
    chunks = zip(tokens.split(weights.shape[1], dim=1), weights, strict=True)
    return torch.cat([c if bool((own == 1).all()) else _weight_chunk(c, own) for c, own in chunks], dim=1)


def _weight_chunk(chunk: Tensor, weights: Tensor) -> Tensor:
    plain = chunk.float()
    weighted = plain * weights.view(1, -1, 1)
    mean = plain.mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)
    return (weighted * mean).to(chunk.dtype)


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
    """Token positions of every occurrence of the word, in the prompt's order."""
    vectors = count_vectors(learned)
    return parse_prompt(tokenizer, prompt, vectors).find_spans(tokenize_words(tokenizer, word, vectors))
