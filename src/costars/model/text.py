"""Prompts to text features: SDXL's two encoders, and where each word sits among the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.errors import SceneError
from costars.types import Text


@dataclass(frozen=True)
class TextEncoders:
    """SDXL's pair of text encoders with their tokenizers (Podell et al. 2023, section 2.1)."""

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    encoder: CLIPTextModel
    encoder_2: CLIPTextModelWithProjection


@torch.no_grad()
def encode_text(encoders: TextEncoders, prompt: str, words: Sequence[str], device: torch.device) -> Text:
    """tokens (1, t, d) of both encoders' last but one layer, pooled (1, d) of the second.

    Raises SceneError if the prompt is longer than the encoders can read.
    """
    ids = token_ids(encoders.tokenizer, prompt).to(device)
    ids_2 = token_ids(encoders.tokenizer_2, prompt).to(device)
    tokens, pooled = features(encoders, ids, ids_2)
    return Text(prompt, tokens, pooled, {w: word_spans(encoders.tokenizer, prompt, w) for w in words})


def features(encoders: TextEncoders, ids: torch.Tensor, ids_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, t, d) of both encoders' last but one layer and (n, d) pooled of the second, from (n, t) ids."""
    first = encoders.encoder(ids, output_hidden_states=True)
    second = encoders.encoder_2(ids_2, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def token_ids(tokenizer: CLIPTokenizer, prompt: str) -> torch.Tensor:
    """(1, t) padded token ids; raises SceneError where the prompt would be cut."""
    longest = tokenizer.model_max_length
    count = len(tokenizer(prompt).input_ids)
    if count > longest:
        raise SceneError(f"prompt of {count} tokens, but the model reads {longest}; shorten {prompt!r}")
    padded = tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
    ids: torch.Tensor = padded.input_ids
    return ids


def word_spans(tokenizer: CLIPTokenizer, prompt: str, word: str) -> tuple[slice, ...]:
    """Every run of token positions that spells the word, in the prompt's order."""
    ids = list(tokenizer(prompt).input_ids)
    needle = list(tokenizer(word).input_ids)[1:-1]
    starts = range(len(ids) - len(needle) + 1)
    return tuple(slice(i, i + len(needle)) for i in starts if ids[i : i + len(needle)] == needle)
