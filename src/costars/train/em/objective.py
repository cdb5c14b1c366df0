"""Words and masks learned together from pictures that show several concepts (VCD, after Break-a-Scene).

Where each concept is in a picture is hidden. In turns the masks are taken from where its words look (E-step,
masks.py), and the words, later low-rank layers too, learn what lies in the masks (M-step, this objective).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from costars.errors import TrainError
from costars.model.model import Model
from costars.model.predict import NoiseSchedule
from costars.model.prompt_weighting import needle
from costars.train.attention_maps import Gaze, gazing
from costars.train.data.aspect_buckets import crop_mask_to_bucket, fitted, uncrop_mask
from costars.train.data.images import Example
from costars.train.data.latents import encode_examples
from costars.train.data.subject import TrainingSubject
from costars.train.diffusion_loss import cell_weights, noise_errors, peaked
from costars.train.em.estep_masks import estimate_masks
from costars.train.em.evidence import AttentionResolutions, EvidenceCollector, select_resolutions
from costars.train.em.group_images import GroupImage, collect_group_images, make_caption, uncovered_mask
from costars.train.embeddings import Captions, read_captions
from costars.train.objective import Masks
from costars.train.recipes import Em, Recipe
from costars.train.trainable import Trained
from costars.types import MaskArray

Draw = tuple[int, tuple[str, ...]]  # a picture, and some of its concepts


@dataclass
class EmObjective:
    """The masked noise error and the attention error of some of a picture's concepts at a time (union sampling)."""

    model: Model
    recipe: Recipe
    em: Em
    trained: Trained
    pictures: Sequence[GroupImage]
    fitted: Sequence[Image.Image]  # each as it is learned from
    latents: Sequence[Tensor]  # (1, c, h, w) each
    size_ids: Sequence[Tensor]
    captions: Captions
    numbers: Mapping[tuple[str, ...], int]  # which caption names these concepts
    needles: Mapping[str, tuple[int, ...]]  # how the first text encoder spells what a concept is called
    gaze: Gaze
    cells: AttentionResolutions
    masks: Masks = field(default_factory=dict)  # of each picture's own size
    fitted_masks: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def before(self, step: int) -> None:
        """Make the masks anew where it is time for it."""
        if not self.masks or (self.em.masks == "learned" and self._is_time(step)):
            self._take(self._given() if self.em.masks == "given" else self._estep(step))

    def _is_time(self, step: int) -> bool:
        return step % self.em.refresh_every_steps == 0 and (
            not self.em.freeze_after_steps or step <= self.em.freeze_after_steps
        )

    def _given(self) -> Masks:
        return {(i, name): each.given[name] for i, each in enumerate(self.pictures) for name in each.names}

    def _take(self, masks: Masks) -> None:
        self.masks = masks
        cut = {(i, name): crop_mask_to_bucket(mask, self.fitted[i].size) for (i, name), mask in masks.items()}
        self.fitted_masks = {key: torch.from_numpy(mask) for key, mask in cut.items()}
        for name in dict.fromkeys(name for _, name in masks):
            if not any(bool(mask.any()) for (_, other), mask in cut.items() if other == name):
                raise TrainError(f"{name}: {self._why_nowhere(name)}")

    def _why_nowhere(self, name: str) -> str:
        """Why no picture has any of a concept, and what to do."""
        if any(name == picture.background for picture in self.pictures):
            return "the others leave nothing of it, in no picture; add one that shows more of it, or leave it out"
        if self.em.masks == "given":
            return (
                "its masks are empty within what is learned from of each picture; set max_aspect_ratio to cut away less"
            )
        return (
            "its words look nowhere in particular, in no picture; draw PICTURE."
            f"{name}.mask.png and set em.masks=given, or give it a class that the model knows"
        )

    def state(self) -> dict[str, Tensor]:
        """The masks, for a checkpoint."""
        return {f"{i}.{name}": torch.from_numpy(mask) for (i, name), mask in self.masks.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The masks of a checkpoint."""
        self._take({(int(k.partition(".")[0]), k.partition(".")[2]): t.numpy() for k, t in tensors.items()})

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of one batch: so many draws of a picture and some of its concepts."""
        draws = [self._draw(generator) for _ in range(self.recipe.batch_size)]
        by_size: dict[torch.Size, list[Draw]] = {}
        for i, names in draws:
            by_size.setdefault(self.latents[i].shape, []).append((i, names))
        losses = [self._loss(rows, generator) * len(rows) for rows in by_size.values()]
        return torch.stack(losses).sum() / len(draws)

    def _draw(self, generator: torch.Generator) -> Draw:
        i = int(torch.randint(len(self.pictures), (1,), generator=generator))
        names = [name for name in self.pictures[i].names if self.fitted_masks[i, name].any()]
        if not names:  # nobody was found in this one
            return self._draw(generator)
        count = int(torch.randint(len(names), (1,), generator=generator)) + 1
        pick = torch.randperm(len(names), generator=generator)[:count].tolist()
        return i, tuple(names[j] for j in sorted(pick))

    def _loss(self, rows: Sequence[Draw], generator: torch.Generator) -> Tensor:
        latents = torch.cat([self.latents[i] for i, _ in rows])
        most = max(len(names) for _, names in rows)
        masks = torch.stack([self._masks(i, names, most) for i, names in rows]).to(latents.device)
        h, w = latents.shape[-2:]
        weights = cell_weights(masks.amax(dim=1, keepdim=True), (h, w), self.recipe.background_loss_weight)
        errors = self._errors(rows, latents, generator, weights)
        strayed = self._strayed(rows, masks)
        self.gaze.at(())
        return errors.mean() + self.recipe.attention_loss_weight * strayed

    def _strayed(self, rows: Sequence[Draw], masks: Tensor) -> Tensor:
        """Equation 4: the error of each concept's map, its peak 1, against its mask (b, n, H, W)."""
        most = masks.shape[1]
        there = torch.tensor([[j < len(names) for j in range(most)] for _, names in rows], device=masks.device)
        shape, errors = self.latents[rows[0][0]].shape, []
        maps = self.gaze.by_size(shape)
        for looked in (found for queries, found in maps.items() if self.cells.includes(queries, shape)):
            wanted = interpolate(masks, looked.shape[-2:], mode="area")
            errors.append((peaked(looked) - wanted).square().mean(dim=(2, 3)))
        return (torch.stack(errors).mean(dim=0) * there).sum() / len(rows)

    def _errors(self, rows: Sequence[Draw], latents: Tensor, generator: torch.Generator, weights: Tensor) -> Tensor:
        text = self._text([names for _, names in rows])
        size_ids = torch.cat([self.size_ids[i] for i, _ in rows])
        gamma, offset = self.recipe.snr_gamma, self.recipe.noise_offset
        levels = NoiseSchedule.from_scheduler(self.model.scheduler)
        return noise_errors(self.model.unet, levels, latents, text, size_ids, generator, gamma, weights, offset)

    def _text(self, named: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor | None]:
        """The texts that name these concepts; the gaze looks at each one's words."""
        numbers = [self.numbers[names] for names in named]
        columns = [
            [self.captions.read[0][number].spans(self.needles[name])[0] for name in names]
            for number, names in zip(numbers, named, strict=True)
        ]
        text = self.captions.features(self.model.encoders, numbers, self.trained.vectors)
        self.gaze.at(columns, text[0].shape[1])
        return text

    def _masks(self, i: int, names: tuple[str, ...], most: int) -> Tensor:
        found = [self.fitted_masks[i, name] for name in names]
        return torch.stack(found + [torch.zeros_like(found[0])] * (most - len(found)))

    @torch.no_grad()
    def _estep(self, step: int) -> Masks:
        masks: Masks = {}
        witness = EvidenceCollector(self.model, self.em, self.gaze, self.cells, self._text)
        for i, picture in enumerate(self.pictures):
            seed = self.recipe.seed * 1_000_003 + step * 101 + i
            known = self.fitted_masks
            before = {name: known[i, name].numpy() for name in picture.names if (i, name) in known}
            found: dict[str, MaskArray] = {}
            if picture.figures:
                evidence = witness.evidence(picture, self.latents[i], self.size_ids[i], seed)
                found = estimate_masks(evidence, self.fitted[i], self.em.estep, before)
            if picture.background:
                found[picture.background] = uncovered_mask([*found.values()], self.fitted[i].size)
            masks |= {(i, name): uncrop_mask(mask, picture.image.size) for name, mask in found.items()}
        return masks


@contextmanager
def em_objective(
    model: Model, teachings: Sequence[TrainingSubject], recipe: Recipe, trained: Trained, em: Em
) -> Iterator[EmObjective]:
    """Within the block this is what the EM recipe trains on; raises TrainError where given masks are not given."""
    cells, pictures = select_resolutions(model, em.attention_cell_px), collect_group_images(teachings)
    for picture in pictures:
        missing = [name for name in picture.figures or picture.names if name not in picture.given]
        if em.masks == "given" and missing:
            raise TrainError(
                f"em.masks=given: {picture.file} has no mask of {', '.join(missing)}; put PICTURE.NAME.mask.png "
                "beside it, or set em.masks=learned"
            )
    called = {t.name: f"{t.trigger} {t.class_name}" for t in teachings}
    said: dict[tuple[str, ...], str] = {}
    for picture in pictures:
        for count in range(1, len(picture.names) + 1):
            for names in combinations(picture.names, count):
                said[names] = make_caption(names, called, em.caption_template, picture.background)
    numbers = {names: number for number, names in enumerate(said)}
    counts = {word: recipe.vectors_per_token for t in teachings for word in t.trigger_words}
    captions = read_captions(model.encoders, [*said.values()], counts)
    needles = {name: needle(model.encoders[0].tokenizer, words, counts) for name, words in called.items()}
    each = [
        encode_examples(
            model,
            [Example(p.image)],
            max_aspect_ratio=recipe.max_aspect_ratio,
            size_conditioning=recipe.size_conditioning,
        )
        for p in pictures
    ]
    latents, size_ids = [e.buckets[0].latents for e in each], [e.buckets[0].size_ids for e in each]
    px = model.facts.cell_px
    sizes = [(latent.shape[-1] * px, latent.shape[-2] * px) for latent in latents]
    shown = [fitted(Example(p.image), size)[0].image for p, size in zip(pictures, sizes, strict=True)]
    with gazing(model.unet, 1) as gaze:
        yield EmObjective(
            model, recipe, em, trained, pictures, shown, latents, size_ids, captions, numbers, needles, gaze, cells
        )
