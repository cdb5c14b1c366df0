"""Prompts to text features, and where each word sits among the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.errors import SceneError
from costars.model.prompt_weighting import Words, needle, read
from costars.types import LearnedWords, Text


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer; name is the part's in a diffusers folder and in adapter files."""

    name: str
    tokenizer: CLIPTokenizer
    module: CLIPTextModel | CLIPTextModelWithProjection


# One in SD 1.5 and 2, a pair in SDXL (Podell et al. 2023, section 2.1).
TextEncoders = tuple[TextEncoder, ...]
NOTHING_LEARNED: LearnedWords = MappingProxyType({})


@torch.no_grad()
def encode_text(
    encoders: TextEncoders,
    prompt: str,
    words: Sequence[str],
    device: torch.device,
    clip_skip: int | None = None,
    learned: LearnedWords = NOTHING_LEARNED,
) -> Text:
    """tokens (l, t, d), pooled (1, d) of SDXL's second encoder; t is 77 for each reading of a long prompt.

    l is 1, or as many as a learned word has layers (ED-LoRA). Weights multiply the tokens, and the mean of
    the reading is then put back (AUTOMATIC1111 does so encoder by encoder). Raises SceneError for a prompt
    beyond all measure.
    """
    counts = vector_counts(learned)
    read_by = [read(e.tokenizer, prompt, counts) for e in encoders]  # all split words alike
    layers = max((len(v) for parts in learned.values() for v in parts.values()), default=1)
    tokens, pooled = [], []
    for reading in range(len(read_by[0].ids)):
        ids = [r.ids[reading : reading + 1].to(device).expand(layers, -1) for r in read_by]
        with ExitStack() as stack:
            for encoder, own in zip(encoders, read_by, strict=True):
                stack.enter_context(_spoken(encoder, own, reading, learned))
            found, whole = features(encoders, ids, clip_skip)
        tokens.append(found)
        pooled.append(None if whole is None else whole[:1])
    spans = {w: read_by[0].spans(needle(encoders[0].tokenizer, w, counts)) for w in words}
    return Text(prompt, _weighted(torch.cat(tokens, dim=1), read_by[0].weights.to(device)), pooled[0], spans)


def vector_counts(learned: LearnedWords) -> dict[str, int]:
    """{word: how many vectors stand for it}."""
    return {word: next(iter(parts.values())).shape[1] for word, parts in learned.items()}


@contextmanager
def _spoken(encoder: TextEncoder, words: Words, reading: int, learned: LearnedWords) -> Iterator[None]:
    """Within the block the encoder takes a learned word's vectors where the reading has that word.

    Raises SceneError for a word that this encoder was not taught.
    """
    length, at = words.ids.shape[1], {}
    for position, word, which in words.learned:
        if encoder.name not in learned[word]:
            raise SceneError(
                f"prompt: {word!r} was not taught to this model's {encoder.name}; use a word of its family"
            )
        if position // length == reading:
            at[position % length] = learned[word][encoder.name][:, which]

    def put(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        for column, vector in at.items():
            output[:, column] = vector.to(output)
        return output

    handle = encoder.module.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _weighted(tokens: Tensor, weights: Tensor) -> Tensor:
    """The readings of a (l, t, d) text one by one, so that one without emphasis stays as it is."""
    readings = zip(tokens.split(weights.shape[1], dim=1), weights, strict=True)
    return torch.cat([r if bool((own == 1).all()) else _emphasised(r, own) for r, own in readings], dim=1)


def _emphasised(reading: Tensor, weights: Tensor) -> Tensor:
    plain = reading.float()
    weighted = plain * weights.view(1, -1, 1)
    mean = plain.mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)
    return (weighted * mean).to(reading.dtype)


def features(
    encoders: TextEncoders, ids: Sequence[Tensor], clip_skip: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """(n, t, d) features of all encoders, side by side, and (n, d) pooled, from each encoder's (n, t) ids.

    clip_skip counts layers from the end: 1 is the last one, which SD 1.5 and 2 read, through the final
    norm; 2, without that norm, is what SDXL reads.
    """
    if len(encoders) == 1:
        (encoder,) = encoders
        hidden = encoder.module(ids[0], output_hidden_states=True).hidden_states[-(clip_skip or 1)]
        return _final_norm(encoder.module)(hidden), None
    outputs = [e.module(i, output_hidden_states=True) for e, i in zip(encoders, ids, strict=True)]
    tokens = torch.cat([o.hidden_states[-(clip_skip or 2)] for o in outputs], dim=-1)
    return tokens, outputs[-1].text_embeds


def _final_norm(module: CLIPTextModel) -> torch.nn.Module:
    """transformers 5 took one level out of CLIPTextModel."""
    norm: torch.nn.Module = getattr(module, "text_model", module).final_layer_norm
    return norm


def token_ids(tokenizer: CLIPTokenizer, prompt: str) -> torch.Tensor:
    """(1, t) padded token ids of one reading; raises SceneError where the prompt would be cut."""
    longest = tokenizer.model_max_length
    count = len(tokenizer(prompt).input_ids)
    if count > longest:
        raise SceneError(f"prompt of {count} tokens, but the model reads {longest}; shorten {prompt!r}")
    padded = tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
    ids: torch.Tensor = padded.input_ids
    return ids


def word_spans(
    tokenizer: CLIPTokenizer, prompt: str, word: str, learned: LearnedWords = NOTHING_LEARNED
) -> tuple[tuple[int, ...], ...]:
    """The token positions of every run that spells the word, in the prompt's order."""
    counts = vector_counts(learned)
    return read(tokenizer, prompt, counts).spans(needle(tokenizer, word, counts))
