"""Prompts to text features, and where each word sits among the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.errors import SceneError
from costars.model.words import needle, read
from costars.types import Text


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer; name is the part's in a diffusers folder and in adapter files."""

    name: str
    tokenizer: CLIPTokenizer
    module: CLIPTextModel | CLIPTextModelWithProjection


# One in SD 1.5 and 2, a pair in SDXL (Podell et al. 2023, section 2.1).
TextEncoders = tuple[TextEncoder, ...]


@torch.no_grad()
def encode_text(
    encoders: TextEncoders, prompt: str, words: Sequence[str], device: torch.device, clip_skip: int | None = None
) -> Text:
    """tokens (1, t, d), pooled (1, d) of SDXL's second encoder; t is 77 for each reading of a long prompt.

    Weights multiply the tokens, whose mean is then put back (as AUTOMATIC1111 does). Raises SceneError
    for a prompt beyond all measure.
    """
    read_by = [read(e.tokenizer, prompt) for e in encoders]  # all split words alike
    by_reading = zip(*(r.ids.to(device).split(1) for r in read_by), strict=True)
    tokens, pooled = zip(*(features(encoders, ids, clip_skip) for ids in by_reading), strict=True)
    spans = {w: read_by[0].spans(needle(encoders[0].tokenizer, w)) for w in words}
    return Text(prompt, _weighted(torch.cat(tokens, dim=1), read_by[0].weights.to(device)), pooled[0], spans)


def _weighted(tokens: Tensor, weights: Tensor) -> Tensor:
    if bool((weights == 1).all()):
        return tokens
    weighted = tokens * weights.to(tokens.dtype).view(1, -1, 1)
    return weighted * (tokens.mean() / weighted.mean())


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


def word_spans(tokenizer: CLIPTokenizer, prompt: str, word: str) -> tuple[tuple[int, ...], ...]:
    """The token positions of every run that spells the word, in the prompt's order."""
    return read(tokenizer, prompt).spans(needle(tokenizer, word))
