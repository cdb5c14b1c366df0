"""Training objectives: the loss of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from costars.errors import TrainError
from costars.model.predict import Conditioning, NoiseSchedule, join_pooled
from costars.train.attention_maps import AttentionRecorder, attention_recorder
from costars.train.data.class_images import batch_class_latents, encode_class_images
from costars.train.data.latents import Batch, LatentDataset, encode_examples
from costars.train.diffusion_loss import attention_leak, cell_weights, noise_errors
from costars.train.embeddings import TokenizedCaptions, tokenize_captions
from costars.train.task import TrainingTask
from costars.train.trainable import Trainable
from costars.types import MaskArray

Masks = dict[tuple[int, str], MaskArray]  # by image index and concept


class Objective(Protocol):
    """The loss of a run; masks are those it uses, empty if it uses none."""

    masks: Masks

    def prepare_step(self, step: int) -> None:
        """Update the objective before a step."""
        ...

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss of one batch, sampled with the generator."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint needs besides parameters and optimizer."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of a checkpoint."""
        ...


@dataclass(kw_only=True)
class ImageObjective:
    """Denoising error on images of single subjects, with attention and prior-preservation losses.

    words are the new words in each caption. Without a recorder attention is not recorded.
    """

    task: TrainingTask
    trainable: Trainable
    images: LatentDataset
    class_images: LatentDataset | None
    captions: TokenizedCaptions
    words: Sequence[tuple[str, ...]]
    recorder: AttentionRecorder | None = None
    masks: Masks = field(default_factory=dict)
    _text_cache: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def prepare_step(self, step: int) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss of one batch of images, and of one batch of class images if there are any."""
        recipe = self.task.recipe
        batch = self.images.sample_batch(recipe.batch_size, generator)
        if self.recorder is not None and recipe.attention_loss_weight:
            loss = self._loss_with_attention(self.recorder, batch, generator)
        else:
            loss = self._errors(batch, self._encode(batch.caption_indices), generator).mean()
        if self.class_images is not None:
            batch = self.class_images.sample_batch(recipe.batch_size, generator)
            errors = self._errors(batch, self._encode(batch.caption_indices), generator)
            loss = loss + recipe.prior_loss_weight * errors.mean()
        return loss

    def _loss_with_attention(self, recorder: AttentionRecorder, batch: Batch, generator: torch.Generator) -> Tensor:
        recipe, text = self.task.recipe, self._encode(batch.caption_indices)
        columns = [[self.captions.token_positions(i, w) for w in self.words[i]] for i in batch.caption_indices]
        with recorder.recording(columns, text[0].shape[1] // self.captions.layers) as maps:
            loss = self._errors(batch, text, generator).mean()
        assert batch.masks is not None
        by_size = maps.by_size(batch.latents.shape)
        leak = attention_leak(by_size, batch.masks.to(loss.device), recipe.attention_full_identity)
        return loss + recipe.attention_loss_weight * leak

    def _errors(self, batch: Batch, text: tuple[Tensor, Tensor | None], generator: torch.Generator) -> Tensor:
        recipe, weights = self.task.recipe, None
        if batch.masks is not None and recipe.background_loss_weight != 1:
            h, w = batch.latents.shape[-2:]
            weights = cell_weights(batch.masks, (h, w), recipe.background_loss_weight)
        return noise_errors(
            self.task.model.unet,
            NoiseSchedule.from_scheduler(self.task.model.scheduler),
            batch.latents,
            Conditioning(*text, batch.size_ids),
            generator,
            snr_gamma=recipe.snr_gamma,
            weights=weights,
            noise_offset=recipe.noise_offset,
        )

    def _encode(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """tokens and pooled of these captions; cached if no parameter of the text is trained."""
        encoders, embeddings = self.task.model.encoders, self.trainable.embeddings
        if self.task.recipe.text_encoder != "none" or embeddings:
            return self.captions.encode(encoders, indices, embeddings)
        for i in indices:
            if i not in self._text_cache:
                with torch.no_grad():
                    self._text_cache[i] = self.captions.encode(encoders, [i], {})
        tokens, pooled = zip(*(self._text_cache[i] for i in indices), strict=True)
        return torch.cat(tokens), join_pooled(pooled)


@contextmanager
def image_objective(
    task: TrainingTask, trainable: Trainable, class_latents: Sequence[Tensor]
) -> Iterator[ImageObjective]:
    """The objective of a task on its images and class images; class_latents are generated ones (1, c, h, w).

    Raises TrainError if the attention loss lacks masks.
    """
    model, recipe, examples = task.model, task.recipe, task.examples
    if recipe.attention_loss_weight and any(example.mask is None for example in examples):
        raise TrainError(
            f"attention_loss_weight {recipe.attention_loss_weight}: an image has no mask; put NAME.mask.png next to "
            "each image, or set attention_loss_weight=0"
        )
    captions = [example.caption or "" for example in examples]
    class_images, class_captions = _encode_class_images(task, class_latents, len(captions))
    images = encode_examples(
        model,
        examples,
        flip_augmentation=recipe.flip_augmentation,
        max_aspect_ratio=recipe.max_aspect_ratio,
        size_conditioning=recipe.size_conditioning,
    )
    layers = task.embedding_layers
    with ExitStack() as stack:
        recorder = None
        if recipe.attention_loss_weight or layers > 1:  # the recorder's processors also read text per layer
            recorder = stack.enter_context(attention_recorder(model.unet, layers, include_middle=True))
        yield ImageObjective(
            task=task,
            trainable=trainable,
            images=images,
            class_images=class_images,
            captions=tokenize_captions(model.encoders, [*captions, *class_captions], task.vectors_per_word, layers),
            words=[task.new_words(subject) for subject in task.subjects for _ in subject.examples],
            recorder=recorder,
        )


def _encode_class_images(
    task: TrainingTask, class_latents: Sequence[Tensor], first: int
) -> tuple[LatentDataset | None, tuple[str, ...]]:
    """Class images with their captions, which are numbered from first on; None without class images."""
    if class_latents:
        captions = task.class_captions
        return batch_class_latents(task.model, class_latents, len(captions), first), captions
    examples = task.class_examples
    return encode_class_images(task.model, examples, task.recipe, first) if examples else (None, ())
