"""EM training of several concepts from images that show them together (VCD, with Break-a-Scene's losses).

The masks of the concepts are latent variables. The E-step (estep_masks.py) estimates them from the model; the M-step
(this objective) trains embeddings, and later LoRA layers, on the masked images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from costars.errors import TrainError
from costars.model.predict import Conditioning, NoiseSchedule
from costars.train.attention_maps import AttentionMaps, AttentionRecorder, attention_recorder
from costars.train.data.aspect_buckets import crop_mask_to_bucket, uncrop_mask
from costars.train.diffusion_loss import cell_weights, max_normalized, noise_errors
from costars.train.em.captions import GroupCaptions, Names, tokenize_group_captions
from costars.train.em.encoded_images import EncodedImage, encode_group_image
from costars.train.em.estep_masks import estimate_masks
from costars.train.em.evidence import AttentionResolutions, EvidenceCollector, select_resolutions
from costars.train.em.group_images import GroupImage, collect_group_images, uncovered_mask
from costars.train.objective import Masks
from costars.train.recipe import EmConfig
from costars.train.task import TrainingTask
from costars.train.trainable import Trainable
from costars.types import MaskArray

Draw = tuple[int, Names]  # index of an image, and some of its concepts


@dataclass(kw_only=True)
class EmObjective:
    """Masked denoising error and attention error for random subsets of an image's concepts (union sampling).

    masks have the size of the original images, cropped_masks that of the cropped ones.
    """

    task: TrainingTask
    em: EmConfig
    trainable: Trainable
    images: Sequence[EncodedImage]
    captions: GroupCaptions
    recorder: AttentionRecorder
    resolutions: AttentionResolutions
    masks: Masks = field(default_factory=dict)
    cropped_masks: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def prepare_step(self, step: int) -> None:
        """Load the masks before the first step, or run the E-step when it is due."""
        if not self.masks or (self.em.masks == "learned" and self._is_estep_due(step)):
            self._set_masks(self._given_masks() if self.em.masks == "given" else self._run_estep(step))

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss of one batch, sampled with the generator."""
        draws = [self._draw(generator) for _ in range(self.task.recipe.batch_size)]
        by_shape: dict[torch.Size, list[Draw]] = {}
        for i, names in draws:
            by_shape.setdefault(self.images[i].latent.shape, []).append((i, names))
        losses = [self._loss_of_shape(rows, generator) * len(rows) for rows in by_shape.values()]
        return torch.stack(losses).sum() / len(draws)

    def state(self) -> dict[str, Tensor]:
        """The masks, by "image index.concept"."""
        return {f"{i}.{name}": torch.from_numpy(mask) for (i, name), mask in self.masks.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with the masks of a checkpoint."""
        self._set_masks(parse_mask_state(tensors))

    def _is_estep_due(self, step: int) -> bool:
        em = self.em
        return step % em.refresh_every_steps == 0 and (not em.freeze_after_steps or step <= em.freeze_after_steps)

    def _given_masks(self) -> Masks:
        return {
            (i, name): image.source.given_masks[name]
            for i, image in enumerate(self.images)
            for name in image.source.names
        }

    @torch.no_grad()
    def _run_estep(self, step: int) -> Masks:
        masks: Masks = {}
        collector = EvidenceCollector(
            model=self.task.model,
            em=self.em,
            trainable=self.trainable,
            captions=self.captions,
            recorder=self.recorder,
            resolutions=self.resolutions,
        )
        for i, image in enumerate(self.images):
            source, known = image.source, self.cropped_masks
            previous = {name: known[i, name].numpy() for name in source.names if (i, name) in known}
            found: dict[str, MaskArray] = {}
            if source.foreground:
                evidence = collector.collect(image, self.task.recipe.seed * 1_000_003 + step * 101 + i)
                found = estimate_masks(evidence, image.cropped, self.em.estep, previous)
            if source.background:
                found[source.background] = uncovered_mask([*found.values()], image.cropped.size)
            masks |= {(i, name): uncrop_mask(mask, source.image.size) for name, mask in found.items()}
        return masks

    def _set_masks(self, masks: Masks) -> None:
        """Replace all masks; raises TrainError if a concept has no pixel in any image."""
        cropped = {key: crop_mask_to_bucket(mask, self.images[key[0]].cropped.size) for key, mask in masks.items()}
        self.masks = masks
        self.cropped_masks = {key: torch.from_numpy(mask) for key, mask in cropped.items()}
        for name in dict.fromkeys(name for _, name in masks):
            if not any(bool(mask.any()) for (_, other), mask in cropped.items() if other == name):
                raise TrainError(f"{name}: {self._explain_empty_masks(name)}")

    def _explain_empty_masks(self, name: str) -> str:
        if any(name == image.source.background for image in self.images):
            return "the other masks cover all of the background in all images; add an image that shows it, or remove it"
        if self.em.masks == "given":
            return "all its masks are empty after the crop to a bucket; raise max_aspect_ratio to crop less"
        return (
            f"the E-step found no mask for it in any image; draw IMAGE.{name}.mask.png and set em.masks=given, or use "
            "a class word that the model knows"
        )

    def _draw(self, generator: torch.Generator) -> Draw:
        """Draw an image and a non-empty subset of the concepts that have a mask in it."""
        i = int(torch.randint(len(self.images), (1,), generator=generator))
        names = [name for name in self.images[i].source.names if self.cropped_masks[i, name].any()]
        if not names:
            return self._draw(generator)
        count = int(torch.randint(len(names), (1,), generator=generator)) + 1
        pick = torch.randperm(len(names), generator=generator)[:count].tolist()
        return i, tuple(names[j] for j in sorted(pick))

    def _loss_of_shape(self, rows: Sequence[Draw], generator: torch.Generator) -> Tensor:
        """The loss of rows whose latents have the same shape."""
        recipe = self.task.recipe
        latents = torch.cat([self.images[i].latent for i, _ in rows])
        masks = self._stack_masks(rows).to(latents.device)
        h, w = latents.shape[-2:]
        weights = cell_weights(masks.amax(dim=1, keepdim=True), (h, w), recipe.background_loss_weight)
        names = [names for _, names in rows]
        conditioning = self._encode(rows)
        with self.recorder.recording(self.captions.token_positions(names), conditioning.tokens.shape[1]) as maps:
            errors = self._noise_errors(latents, conditioning, generator, weights)
        return errors.mean() + recipe.attention_loss_weight * self._attention_error(rows, masks, maps)

    def _noise_errors(
        self, latents: Tensor, conditioning: Conditioning, generator: torch.Generator, weights: Tensor
    ) -> Tensor:
        return noise_errors(
            self.task.model.unet,
            NoiseSchedule.from_scheduler(self.task.model.scheduler),
            latents,
            conditioning,
            generator,
            snr_gamma=self.task.recipe.snr_gamma,
            weights=weights,
            noise_offset=self.task.recipe.noise_offset,
        )

    def _attention_error(self, rows: Sequence[Draw], masks: Tensor, maps: AttentionMaps) -> Tensor:
        """Squared error between each concept's max-normalized attention map and its mask (equation 4)."""
        present = torch.tensor([[j < len(names) for j in range(masks.shape[1])] for _, names in rows])
        shape, errors = self.images[rows[0][0]].latent.shape, []
        for queries, attention in maps.by_size(shape).items():
            if self.resolutions.includes(queries, shape):
                target = interpolate(masks, attention.shape[-2:], mode="area")
                errors.append((max_normalized(attention) - target).square().mean(dim=(2, 3)))
        return (torch.stack(errors).mean(dim=0) * present.to(masks.device)).sum() / len(rows)

    def _encode(self, rows: Sequence[Draw]) -> Conditioning:
        model, embeddings = self.task.model, self.trainable.embeddings
        tokens, pooled = self.captions.encode(model.encoders, [names for _, names in rows], embeddings)
        return Conditioning(tokens, pooled, torch.cat([self.images[i].size_ids for i, _ in rows]))

    def _stack_masks(self, rows: Sequence[Draw]) -> Tensor:
        """(b, n, H, W) cropped masks of each row's concepts, with empty masks for rows of fewer concepts."""
        longest = max(len(names) for _, names in rows)
        stacked = []
        for i, names in rows:
            masks = [self.cropped_masks[i, name] for name in names]
            stacked.append(torch.stack(masks + [torch.zeros_like(masks[0])] * (longest - len(masks))))
        return torch.stack(stacked)


def parse_mask_state(tensors: Mapping[str, Tensor]) -> Masks:
    """The masks of `EmObjective.state`."""
    return {(int(key.partition(".")[0]), key.partition(".")[2]): tensor.numpy() for key, tensor in tensors.items()}


@contextmanager
def em_objective(task: TrainingTask, trainable: Trainable, em: EmConfig) -> Iterator[EmObjective]:
    """The objective of the EM recipe, with its attention recorder installed for the block.

    Raises TrainError if em.masks=given and an image lacks a mask.
    """
    model, resolutions = task.model, select_resolutions(task.model, em.attention_cell_px)
    images = collect_group_images(task.subjects)
    if em.masks == "given":
        _check_given_masks(images)
    captions = tokenize_group_captions(task, images, em)
    encoded = [encode_group_image(model, image, task.recipe) for image in images]
    with attention_recorder(model.unet) as recorder:
        yield EmObjective(
            task=task,
            em=em,
            trainable=trainable,
            images=encoded,
            captions=captions,
            recorder=recorder,
            resolutions=resolutions,
        )


def _check_given_masks(images: Sequence[GroupImage]) -> None:
    for image in images:
        missing = [name for name in image.foreground or image.names if name not in image.given_masks]
        if missing:
            raise TrainError(
                f"em.masks=given: {image.file} has no mask of {', '.join(missing)}; add IMAGE.NAME.mask.png next to "
                "it, or set em.masks=learned"
            )
