"""What a model tells of where the concepts of a picture are: the passes through it that the E-step needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from costars.errors import TrainError
from costars.model.families import attention_depths, attention_layers
from costars.model.model import Model
from costars.model.predict import NoiseSchedule
from costars.sample.attention_rules import evened, grid_of
from costars.train.attention_maps import Gaze
from costars.train.diffusion_loss import squared_errors
from costars.train.em.estep_masks import Evidence
from costars.train.em.group_images import GroupImage
from costars.train.recipes import Em

Text = Callable[[Sequence[tuple[str, ...]]], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class AttentionResolutions:
    """Which attention is looked at: layers each of whose queries stands for a square of one of these px.

    latent_px is the side of what one latent cell stands for.
    """

    latent_px: int
    px: tuple[int, ...]

    def includes(self, queries: int, shape: Sequence[int]) -> bool:
        """Whether attention of so many queries, on latents (..., h, w), is looked at."""
        return round(self.latent_px * math.sqrt(shape[-2] * shape[-1] / queries)) in self.px

    def finest(self, shape: Sequence[int]) -> int:
        """The number of queries of the attention with the smallest cells, on latents (..., h, w)."""
        return math.prod(math.ceil(side * self.latent_px / min(self.px)) for side in shape[-2:])


def select_resolutions(model: Model, px: Sequence[int]) -> AttentionResolutions:
    """Cells of these px. Raises TrainError where the model has no attention of one of them, the mid block's aside."""
    known = [model.facts.cell_px << depth for depth in attention_depths(attention_layers(model.unet))]
    if missing := sorted({*px} - {*known}):
        raise TrainError(
            f"settings.em.attention_cell_px: {list(px)}; no attention of this model has cells of {missing[0]} px, it "
            f"has {', '.join(map(str, known))}"
        )
    return AttentionResolutions(model.facts.cell_px, tuple(px))


@dataclass(frozen=True)
class EvidenceCollector:
    """Asks a model about pictures; text names some of a picture's concepts and has the gaze look at their words."""

    model: Model
    em: Em
    gaze: Gaze
    cells: AttentionResolutions
    text: Text

    def evidence(self, picture: GroupImage, latent: Tensor, size_ids: Tensor, seed: int) -> Evidence:
        """Of a picture's figures, its latent (1, c, h, w); the same for the same seed. A background is none of them."""
        whole = self.em.estep.use_likelihood
        with self.gaze.relating(self.cells.finest(latent.shape) if whole else 0):
            maps = self._maps(picture.names, latent, size_ids, seed)
        maps = {name: maps[name] for name in picture.figures}
        if not whole:
            return Evidence(maps)
        errors = {name: self._errors(name, latent, size_ids, seed) for name in maps} if len(maps) > 1 else {}
        return Evidence(maps, self.gaze.kin, errors)

    def _maps(self, names: tuple[str, ...], latent: Tensor, size_ids: Tensor, seed: int) -> dict[str, Tensor]:
        """{concept: (h, w)} where its words look, the mean over random timesteps."""
        sums = dict[str, Tensor]()
        for _ in self._noised(names, latent, size_ids, seed):
            for layer, looked in self.gaze.maps.items():
                if self.cells.includes(looked.shape[-1], latent.shape):
                    sums[layer] = looked.sum(dim=0) + sums.get(layer, 0)
        each = torch.stack([_on_grid(total, latent.shape[-2:]) for total in sums.values()])
        return dict(zip(names, each.mean(dim=0), strict=True))

    def _errors(self, name: str, latent: Tensor, size_ids: Tensor, seed: int) -> Tensor:
        """(h, w) how ill a concept's words alone explain a picture, for each at the same timesteps and noise."""
        return torch.cat(list(self._noised((name,), latent, size_ids, seed, looking=False))).mean(dim=0)

    def _noised(
        self, names: tuple[str, ...], latent: Tensor, size_ids: Tensor, seed: int, looking: bool = True
    ) -> Iterator[Tensor]:
        """(n, h, w) errors under a text that names these, at random timesteps, so many rows at a time."""
        rest, levels = self.em.estep.timesteps, NoiseSchedule.from_scheduler(self.model.scheduler)
        generator = torch.Generator().manual_seed(seed)
        while rest:
            count = min(self.em.rows_per_call, rest)
            text = self.text([names] * count)
            if not looking:
                self.gaze.at(())
            latents, sizes = latent.expand(count, -1, -1, -1), size_ids.expand(count, 6)
            yield squared_errors(self.model.unet, levels, latents, text, sizes, generator)[0].mean(dim=1)
            self.gaze.at(())
            rest -= count


def _on_grid(looked: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) of one layer's (n, queries), evened."""
    maps = evened(looked.unflatten(1, grid_of(looked.shape[1], size)))[None]
    return interpolate(maps, size, mode="bicubic", align_corners=False)[0]
