"""New words in training: vectors that text encoders read in a word's place, with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from costars.errors import TrainError
from costars.model.prompt_weighting import Words, read, unemphasised
from costars.model.text_encoder import TextEncoder, TextEncoders, features
from costars.types import LearnedWords

Vectors = Mapping[str, Mapping[str, nn.Parameter]]  # {word: {encoder: (l, n, d)}}


def first_vectors(
    encoder: TextEncoder,
    from_class: str | None,
    layers: int,
    count: int,
    generator: torch.Generator,
    shared: bool = False,
) -> nn.Parameter:
    """(l, n, d) float32: the class word's own vector for all, or as random as the table's are.

    Several vectors of one word differ by a hundredth, or they would learn the same; so does one whose class is
    shared with another concept. Raises TrainError for a
    class word that is several tokens.
    """
    table = encoder.module.get_input_embeddings().weight.detach().float().cpu()
    shape = (layers, count, table.shape[1])
    noise = torch.randn(shape[1:], generator=generator) * float(table.std())
    if from_class is None:
        start = noise
    else:
        ids = encoder.tokenizer(from_class).input_ids[1:-1]
        if len(ids) != 1:
            pieces = " ".join(encoder.tokenizer.convert_ids_to_tokens(ids))
            raise TrainError(
                f"class {from_class!r}: the tokenizer splits it into {len(ids)} ({pieces}), but a word starts from "
                "one; use a class of one token, or embedding_init=random"
            )
        start = table[ids[0]] + (noise / 100 if count > 1 or shared else 0)
    return nn.Parameter(start.expand(shape).clone())


@dataclass(frozen=True)
class Captions:
    """Captions as each text encoder reads them, once for all."""

    read: Sequence[Sequence[Words]]  # by encoder, by caption
    layers: int = 1

    def features(
        self, encoders: TextEncoders, pick: Sequence[int], vectors: LearnedWords
    ) -> tuple[Tensor, Tensor | None]:
        """tokens (b, l * t, d) and pooled (b, d) of the picked captions; gradients reach the vectors."""
        layers, ids = self.layers, []
        with ExitStack() as stack:
            for encoder, captions in zip(encoders, self.read, strict=True):
                rows = torch.cat([captions[i].ids for i in pick])
                ids.append(rows.repeat_interleave(layers, dim=0).to(encoder.module.device))
                stack.enter_context(_spoken(encoder, [captions[i] for i in pick], vectors, layers))
            tokens, pooled = features(encoders, ids)
        return tokens.unflatten(0, (len(pick), layers)).flatten(1, 2), None if pooled is None else pooled[::layers]

    def columns(self, caption: int, word: str) -> tuple[int, ...]:
        """Where a learned word's tokens stand in a caption."""
        return tuple(position for position, spoken, _ in self.read[0][caption].learned if spoken == word)


def read_captions(
    encoders: TextEncoders, captions: Sequence[str], counts: Mapping[str, int], layers: int = 1
) -> Captions:
    """Captions with words of so many vectors; brackets mean brackets. Raises TrainError for one that is too long."""
    each = []
    for encoder in encoders:
        read_by = [read(encoder.tokenizer, unemphasised(caption), counts) for caption in captions]
        for caption, words in zip(captions, read_by, strict=True):
            if len(words.ids) > 1:
                room = encoder.tokenizer.model_max_length - 2
                raise TrainError(f"caption of {len(words.tokens)} tokens, at most {room} are read; shorten {caption!r}")
        each.append(read_by)
    return Captions(each, layers)


@contextmanager
def _spoken(encoder: TextEncoder, rows: Sequence[Words], vectors: LearnedWords, layers: int) -> Iterator[None]:
    """Within the block the encoder takes the vectors where the rows say a learned word; each row stands l times."""
    at = [(i, *found) for i, words in enumerate(rows) for found in words.learned]
    if not at:
        yield
        return

    def put(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        row = torch.tensor([i * layers + k for i, *_ in at for k in range(layers)], device=output.device)
        column = torch.tensor([p for _, p, *_ in at for _ in range(layers)], device=output.device)
        values = torch.cat([vectors[w][encoder.name][:, j].expand(layers, -1) for _, _, w, j in at])
        return output.index_put((row, column), values.to(output))

    handle = encoder.module.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
