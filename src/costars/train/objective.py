"""What a recipe makes smaller, put together: pictures, captions, words and the class, in one loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from costars.errors import TrainError
from costars.model.families import count_cross_layers
from costars.model.model import Model
from costars.model.predict import NoiseSchedule, join_pooled
from costars.train.attention_maps import Gaze, gazing
from costars.train.data.class_images import batch_class_latents, encode_class_images
from costars.train.data.latents import Batch, LatentDataset, encode_examples
from costars.train.data.subject import TrainingSubject, collect_class_examples
from costars.train.diffusion_loss import cell_weights, noise_errors, strayed
from costars.train.embeddings import Captions, read_captions
from costars.train.recipes import Recipe
from costars.train.trainable import Trained
from costars.types import MaskArray

Masks = dict[tuple[int, str], MaskArray]  # by picture and concept


class Objective(Protocol):
    """What the loop makes smaller."""

    masks: Masks

    def before(self, step: int) -> None:
        """What is to be done before a step."""
        ...

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of one batch, drawn by the generator."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the parameters."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        ...


@dataclass
class PictureObjective:
    """The loss of a recipe on its pictures; texts that nothing in training touches are encoded once."""

    model: Model
    recipe: Recipe
    pictures: LatentDataset
    prior: LatentDataset | None
    captions: Captions
    trained: Trained
    owners: Sequence[tuple[str, ...]]  # the words that a caption teaches, by caption
    gaze: Gaze | None = None
    texts: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)

    def before(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of one batch, drawn by the generator."""
        recipe = self.recipe
        batch = self.pictures.draw(recipe.batch_size, generator)
        loss = self._errors(batch, generator, watched=True).mean()
        if self.gaze is not None and recipe.attention_loss_weight:
            assert batch.masks is not None
            maps = self.gaze.by_size(batch.latents.shape)
            loss = loss + recipe.attention_loss_weight * strayed(
                maps, batch.masks.to(loss.device), recipe.attention_full_identity
            )
            self.gaze.at(())
        if self.prior is not None:
            others = self._errors(self.prior.draw(recipe.batch_size, generator), generator, watched=False)
            loss = loss + recipe.prior_loss_weight * others.mean()
        return loss

    def _errors(self, batch: Batch, generator: torch.Generator, watched: bool) -> Tensor:
        recipe, weights = self.recipe, None
        if batch.masks is not None and recipe.background_loss_weight != 1:
            h, w = batch.latents.shape[-2:]
            weights = cell_weights(batch.masks, (h, w), recipe.background_loss_weight)
        text = self._text(batch.captions)
        if self.gaze is not None:
            columns = self._columns(batch.captions) if watched and recipe.attention_loss_weight else ()
            self.gaze.at(columns, text[0].shape[1] // self.captions.layers)
        levels = NoiseSchedule.from_scheduler(self.model.scheduler)
        return noise_errors(
            self.model.unet,
            levels,
            batch.latents,
            text,
            batch.size_ids,
            generator,
            recipe.snr_gamma,
            weights,
            recipe.noise_offset,
        )

    def _columns(self, captions: Sequence[int]) -> list[list[tuple[int, ...]]]:
        return [[self.captions.columns(i, word) for word in self.owners[i]] for i in captions]

    def _text(self, captions: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        encoders, vectors = self.model.encoders, self.trained.vectors
        if self.recipe.text_encoder != "none" or vectors:
            return self.captions.features(encoders, captions, vectors)
        for i in captions:
            if i not in self.texts:
                with torch.no_grad():
                    self.texts[i] = self.captions.features(encoders, [i], {})
        tokens, pooled = zip(*(self.texts[i] for i in captions), strict=True)
        return torch.cat(tokens), join_pooled(pooled)


@contextmanager
def picture_objective(
    model: Model, teachings: Sequence[TrainingSubject], recipe: Recipe, trained: Trained, class_latents: Sequence[Tensor]
) -> Iterator[PictureObjective]:
    """Within the block this is what the recipe trains on; raises TrainError where it needs masks that are not there."""
    examples = [example for teaching in teachings for example in teaching.examples]
    if recipe.attention_loss_weight and any(example.mask is None for example in examples):
        raise TrainError(
            f"attention_loss_weight {recipe.attention_loss_weight}: keeps words in masks, but a picture has none; "
            "put NAME.mask.png beside each, or set attention_loss_weight=0"
        )
    said = [example.caption or "" for example in examples]
    prior, others = None, tuple[str, ...]()
    if class_latents:
        others = tuple(dict.fromkeys(caption for teaching in teachings for caption in teaching.class_captions()))
        prior = batch_class_latents(model, class_latents, len(others), len(said))
    elif given := collect_class_examples(teachings, recipe):
        prior, others = encode_class_images(model, given, recipe, len(said))
    counts = {
        word: recipe.vectors_per_token for teaching in teachings for word in teaching.trigger_words[: recipe.num_new_tokens]
    }
    layers = count_cross_layers(model.unet) if recipe.per_layer_embeddings else 1
    captions = read_captions(model.encoders, [*said, *others], counts, layers)
    owners = [teaching.trigger_words[: recipe.num_new_tokens] for teaching in teachings for _ in teaching.examples]
    pictures = encode_examples(
        model,
        examples,
        flip_augmentation=recipe.flip_augmentation,
        max_aspect_ratio=recipe.max_aspect_ratio,
        size_conditioning=recipe.size_conditioning,
    )
    with ExitStack() as stack:
        watched = recipe.attention_loss_weight or layers > 1
        gaze = stack.enter_context(gazing(model.unet, layers, middle=True)) if watched else None
        yield PictureObjective(model, recipe, pictures, prior, captions, trained, owners, gaze)
