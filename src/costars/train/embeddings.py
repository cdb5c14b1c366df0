"""Trainable embeddings of new words in captions (textual inversion)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from costars.errors import TrainError
from costars.model.prompt_weighting import ParsedPrompt, parse_prompt
from costars.model.text_encoder import TextEncoder, TextEncoders, encode_ids
from costars.types import LearnedWords

TokenEmbeddings = Mapping[str, Mapping[str, nn.Parameter]]  # {word: {encoder: (l, n, d)}}


def random_embeddings(encoder: TextEncoder, shape: tuple[int, int], generator: torch.Generator) -> nn.Parameter:
    """(l, n, d) float32 of random numbers with the standard deviation of the encoder's table; layers l are equal."""
    table = _table(encoder)
    return _repeat_layers(_noise(table, shape[1], generator), shape[0])


def class_embeddings(
    encoder: TextEncoder, class_name: str, shape: tuple[int, int], generator: torch.Generator, jitter: bool = False
) -> nn.Parameter:
    """(l, n, d) float32 copies of the class word's embedding; shape is (l, n).

    Several vectors, or any with jitter, get a little noise, else they would learn the same. Raises TrainError if the
    tokenizer splits the class word.
    """
    table = _table(encoder)
    noise = _noise(table, shape[1], generator)  # drawn in any case: the generator's state is the same for all settings
    ids = encoder.tokenizer(class_name).input_ids[1:-1]
    if len(ids) != 1:
        pieces = " ".join(encoder.tokenizer.convert_ids_to_tokens(ids))
        raise TrainError(
            f"class {class_name!r}: the tokenizer splits it into {len(ids)} tokens ({pieces}), but a new "
            "word starts from one; use a class of one token, or embedding_init=random"
        )
    return _repeat_layers(table[ids[0]] + (noise / 100 if shape[1] > 1 or jitter else 0), shape[0])


@dataclass(frozen=True)
class TokenizedCaptions:
    """Captions tokenized once: prompts by text encoder, by caption. layers have embeddings of their own."""

    prompts: Sequence[Sequence[ParsedPrompt]]
    layers: int = 1

    def encode(
        self, encoders: TextEncoders, indices: Sequence[int], embeddings: LearnedWords
    ) -> tuple[Tensor, Tensor | None]:
        """tokens (b, l * t, d) and pooled (b, d) of the captions with these indices; gradients reach the embeddings."""
        layers, ids = self.layers, []
        with ExitStack() as stack:
            for encoder, prompts in zip(encoders, self.prompts, strict=True):
                rows = torch.cat([prompts[i].ids for i in indices])
                ids.append(rows.repeat_interleave(layers, dim=0).to(encoder.module.device))
                stack.enter_context(_insert_embeddings(encoder, [prompts[i] for i in indices], embeddings, layers))
            tokens, pooled = encode_ids(encoders, ids)
        tokens = tokens.unflatten(0, (len(indices), layers)).flatten(1, 2)
        return tokens, None if pooled is None else pooled[::layers]

    def token_positions(self, caption: int, word: str) -> tuple[int, ...]:
        """Positions of a learned word's tokens in a caption."""
        return tuple(position for position, learned, _ in self.prompts[0][caption].learned if learned == word)


def tokenize_captions(
    encoders: TextEncoders, captions: Sequence[str], vectors_per_word: Mapping[str, int], layers: int = 1
) -> TokenizedCaptions:
    """Tokenize captions with learned words of so many vectors; captions are plain text, without emphasis.

    Raises TrainError for a caption that is too long.
    """
    by_encoder = []
    for encoder in encoders:
        prompts = [parse_prompt(encoder.tokenizer, caption, vectors_per_word, plain=True) for caption in captions]
        for caption, prompt in zip(captions, prompts, strict=True):
            if len(prompt.ids) > 1:
                limit = encoder.tokenizer.model_max_length - 2
                raise TrainError(
                    f"caption of {len(prompt.tokens)} tokens, at most {limit} are read; shorten {caption!r}"
                )
        by_encoder.append(prompts)
    return TokenizedCaptions(by_encoder, layers)


@contextmanager
def _insert_embeddings(
    encoder: TextEncoder, rows: Sequence[ParsedPrompt], embeddings: LearnedWords, layers: int
) -> Iterator[None]:
    """Replace the token embeddings of learned words for the block; each row is repeated for each layer."""
    found = [(i, *learned) for i, prompt in enumerate(rows) for learned in prompt.learned]
    if not found:
        yield
        return

    def replace_tokens(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        row = torch.tensor([i * layers + k for i, *_ in found for k in range(layers)], device=output.device)
        column = torch.tensor([p for _, p, *_ in found for _ in range(layers)], device=output.device)
        values = torch.cat([embeddings[w][encoder.name][:, j].expand(layers, -1) for _, _, w, j in found])
        return output.index_put((row, column), values.to(output))

    handle = encoder.module.get_input_embeddings().register_forward_hook(replace_tokens)
    try:
        yield
    finally:
        handle.remove()


def _table(encoder: TextEncoder) -> Tensor:
    return encoder.module.get_input_embeddings().weight.detach().float().cpu()


def _noise(table: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn((count, table.shape[1]), generator=generator) * float(table.std())


def _repeat_layers(vectors: Tensor, layers: int) -> nn.Parameter:
    return nn.Parameter(vectors.expand((layers, -1, -1) if vectors.dim() == 2 else (layers, 1, -1)).clone())
