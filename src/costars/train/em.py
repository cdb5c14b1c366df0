"""Words and masks learned together from pictures that show several concepts (VCD, after Break-a-Scene).

Where each concept is in a picture is hidden. In turns the masks are taken from where its words look (E-step,
masks.py), and the words, later low-rank layers too, learn what lies in the masks (M-step, this objective).
"""

from __future__ import annotations

import math
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
from costars.model.words import needle
from costars.sample.rules import evened, grid_of
from costars.train.batches import encode
from costars.train.buckets import fitted, fitted_mask, put_back
from costars.train.data import Example
from costars.train.entangled import Entangled, caption_of, entangled
from costars.train.gaze import Gaze, gazing
from costars.train.lessons import Teaching
from costars.train.loss import cell_weights, levels_of, noise_errors, peaked, squared_errors
from costars.train.masks import disjoint
from costars.train.objective import Masks
from costars.train.recipes import Em, Recipe
from costars.train.trained import Trained
from costars.train.words import Captions, read_captions

Draw = tuple[int, tuple[str, ...]]  # a picture, and some of its concepts


@dataclass
class EmObjective:
    """The masked noise error and the attention error of some of a picture's concepts at a time (union sampling)."""

    model: Model
    recipe: Recipe
    em: Em
    trained: Trained
    pictures: Sequence[Entangled]
    fitted: Sequence[Image.Image]  # each as it is learned from
    latents: Sequence[Tensor]  # (1, c, h, w) each
    size_ids: Sequence[Tensor]
    captions: Captions
    numbers: Mapping[tuple[str, ...], int]  # which caption names these concepts
    needles: Mapping[str, tuple[int, ...]]  # how the first text encoder spells what a concept is called
    gaze: Gaze
    masks: Masks = field(default_factory=dict)  # of each picture's own size
    fitted_masks: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def before(self, step: int) -> None:
        """Make the masks anew where it is time for it."""
        if not self.masks or (self.em.masks == "learned" and self._is_time(step)):
            self._take(self._given() if self.em.masks == "given" else self._estep(step))

    def _is_time(self, step: int) -> bool:
        return step % self.em.refresh == 0 and (not self.em.until or step <= self.em.until)

    def _given(self) -> Masks:
        return {(i, name): each.given[name] for i, each in enumerate(self.pictures) for name in each.names}

    def _take(self, masks: Masks) -> None:
        self.masks = masks
        cut = {(i, name): fitted_mask(mask, self.fitted[i].size) for (i, name), mask in masks.items()}
        self.fitted_masks = {key: torch.from_numpy(mask) for key, mask in cut.items()}
        for name in dict.fromkeys(name for _, name in masks):
            if not any(bool(mask.any()) for (_, other), mask in cut.items() if other == name):
                raise TrainError(
                    f"{name}: its words look nowhere in particular, in no picture; draw PICTURE.{name}.mask.png and "
                    "set em.masks=given, or give it a class that the model knows"
                )

    def state(self) -> dict[str, Tensor]:
        """The masks, for a checkpoint."""
        return {f"{i}.{name}": torch.from_numpy(mask) for (i, name), mask in self.masks.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The masks of a checkpoint."""
        self._take({(int(k.partition(".")[0]), k.partition(".")[2]): t.numpy() for k, t in tensors.items()})

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of one batch: so many draws of a picture and some of its concepts."""
        draws = [self._draw(generator) for _ in range(self.recipe.batch)]
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
        weights = cell_weights(masks.amax(dim=1, keepdim=True), (h, w), self.recipe.outside_weight)
        errors = self._errors(rows, latents, generator, weights)
        strayed = self._strayed(rows, masks)
        self.gaze.at(())
        return errors.mean() + self.recipe.attention_weight * strayed

    def _strayed(self, rows: Sequence[Draw], masks: Tensor) -> Tensor:
        """Equation 4: the error of each concept's map, its peak 1, against its mask (b, n, H, W)."""
        most = masks.shape[1]
        there = torch.tensor([[j < len(names) for j in range(most)] for _, names in rows], device=masks.device)
        shape, errors = self.latents[rows[0][0]].shape, []
        maps = self.gaze.by_size(shape)
        for looked in (found for queries, found in maps.items() if self._counts(queries, shape)):
            wanted = interpolate(masks, looked.shape[-2:], mode="area")
            errors.append((peaked(looked) - wanted).square().mean(dim=(2, 3)))
        return (torch.stack(errors).mean(dim=0) * there).sum() / len(rows)

    def _errors(self, rows: Sequence[Draw], latents: Tensor, generator: torch.Generator, weights: Tensor) -> Tensor:
        text = self._text([names for _, names in rows])
        size_ids = torch.cat([self.size_ids[i] for i, _ in rows])
        gamma, offset = self.recipe.gamma, self.recipe.noise_offset
        levels = levels_of(self.model.scheduler)
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

    def _counts(self, queries: int, shape: torch.Size) -> bool:
        """Whether attention of so many queries, on latents (..., h, w), has cells of a size that is looked at."""
        cell = self.model.facts.cell_px * math.sqrt(shape[-2] * shape[-1] / queries)
        return round(cell) in self.em.cells_px

    def _masks(self, i: int, names: tuple[str, ...], most: int) -> Tensor:
        found = [self.fitted_masks[i, name] for name in names]
        return torch.stack(found + [torch.zeros_like(found[0])] * (most - len(found)))

    @torch.no_grad()
    def _estep(self, step: int) -> Masks:
        masks: Masks = {}
        for i, picture in enumerate(self.pictures):
            seed = self.recipe.seed * 1_000_003 + step * 101 + i
            maps = self._mean_maps(i, torch.Generator().manual_seed(seed))
            errors = self._mean_errors(i, seed) if self.em.estep.likelihood and len(picture.names) > 1 else None
            known = self.fitted_masks
            before = {name: known[i, name].numpy() for name in picture.names if (i, name) in known}
            found = disjoint(maps, self.fitted[i], self.em.estep, before, errors)
            masks |= {(i, name): put_back(mask, picture.image.size) for name, mask in found.items()}
        return masks

    def _mean_maps(self, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        """{concept: (h, w)} where its words look in a picture, the mean over random timesteps."""
        names, sums = self.pictures[i].names, dict[str, Tensor]()
        shape = self.latents[i].shape
        for _ in self._noised(i, names, generator):
            for layer, looked in self.gaze.maps.items():
                if self._counts(looked.shape[-1], shape):
                    sums[layer] = looked.sum(dim=0) + sums.get(layer, 0)
        if not sums:
            raise TrainError(
                f"em.cells_px {list(self.em.cells_px)}: no attention of this model has cells of that size; "
                "give those that it has, such as 8, 16, 32 or 64 px"
            )
        each = [_on_grid(total, shape[-2:]) for total in sums.values()]
        return dict(zip(names, torch.stack(each).mean(dim=0), strict=True))

    def _mean_errors(self, i: int, seed: int) -> dict[str, Tensor]:
        """{concept: (h, w)} how ill its words alone explain a picture, for all at the same timesteps and noise."""
        errors = {}
        for name in self.pictures[i].names:
            each = list(self._noised(i, (name,), torch.Generator().manual_seed(seed)))
            errors[name] = torch.cat(each).mean(dim=0)
        return errors

    def _noised(self, i: int, names: tuple[str, ...], generator: torch.Generator) -> Iterator[Tensor]:
        """(n, h, w) errors of a picture under a text that names these, at random timesteps, so many rows at a time."""
        rest, latent = self.em.estep.timesteps, self.latents[i]
        while rest:
            count = min(self.em.rows, rest)
            text, size_ids = self._text([names] * count), self.size_ids[i].expand(count, 6)
            latents = latent.expand(count, -1, -1, -1)
            levels = levels_of(self.model.scheduler)
            yield squared_errors(self.model.unet, levels, latents, text, size_ids, generator)[0].mean(dim=1)
            self.gaze.at(())
            rest -= count


def _on_grid(looked: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) of one layer's (n, queries), evened."""
    maps = evened(looked.unflatten(1, grid_of(looked.shape[1], size)))[None]
    return interpolate(maps, size, mode="bicubic", align_corners=False)[0]


@contextmanager
def em_objective(
    model: Model, teachings: Sequence[Teaching], recipe: Recipe, trained: Trained, em: Em
) -> Iterator[EmObjective]:
    """Within the block this is what the EM recipe trains on; raises TrainError where given masks are not given."""
    pictures = entangled(teachings)
    for i, picture in enumerate(pictures):
        missing = [name for name in picture.names if name not in picture.given]
        if em.masks == "given" and missing:
            raise TrainError(
                f"em.masks=given: picture {i + 1} has no mask of {', '.join(missing)}; put PICTURE.NAME.mask.png "
                "beside it, or set masks=learned"
            )
    called = {t.name: f"{t.trigger} {t.class_name}" for t in teachings}
    numbers: dict[tuple[str, ...], int] = {}
    for picture in pictures:
        for count in range(1, len(picture.names) + 1):
            for names in combinations(picture.names, count):
                numbers.setdefault(names, len(numbers))
    counts = {word: recipe.vectors for t in teachings for word in t.words}
    captions = read_captions(model.encoders, [caption_of(names, called, em.caption) for names in numbers], counts)
    needles = {name: needle(model.encoders[0].tokenizer, words, counts) for name, words in called.items()}
    each = [encode(model, [Example(p.image)], longest=recipe.longest, own_size=recipe.own_size) for p in pictures]
    latents, size_ids = [e.buckets[0].latents for e in each], [e.buckets[0].size_ids for e in each]
    px = model.facts.cell_px
    sizes = [(latent.shape[-1] * px, latent.shape[-2] * px) for latent in latents]
    shown = [fitted(Example(p.image), size)[0].image for p, size in zip(pictures, sizes, strict=True)]
    with gazing(model.unet, 1) as gaze:
        yield EmObjective(
            model, recipe, em, trained, pictures, shown, latents, size_ids, captions, numbers, needles, gaze
        )
