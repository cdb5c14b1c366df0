"""What a recipe trains of a model, by name, and the concept that it amounts to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from costars.model.families import CROSS_KEYS_VALUES, count_cross_layers
from costars.model.model import Model
from costars.train.data.subject import TrainingSubject
from costars.train.embeddings import Vectors, first_vectors
from costars.train.lora_layers import TEXT_LAYERS, UNET_LAYERS, as_adapter, halved, low_rank, own_weights
from costars.train.recipes import Recipe
from costars.types import Adapter, LearnedWords


@dataclass(frozen=True)
class Trained:
    """Parameters by the part that they belong to, all in float32; vectors are the new words'."""

    low_rank: Mapping[str, Mapping[str, nn.Parameter]] = field(default_factory=dict)
    weights: Mapping[str, nn.Parameter] = field(default_factory=dict)
    vectors: Vectors = field(default_factory=dict)
    scale: float = 1.0

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter under a name of its own."""
        named = {f"{part}/{path}": p for part, factors in self.low_rank.items() for path, p in factors.items()}
        named |= {f"weights/{path}": p for path, p in self.weights.items()}
        return named | {f"words/{e}/{word}": p for word, parts in self.vectors.items() for e, p in parts.items()}

    def groups(self, recipe: Recipe) -> list[dict[str, object]]:
        """Parameters with their rates, as an optimizer takes them; words do not decay."""
        unet = [*self.low_rank.get("unet", {}).values(), *self.weights.values()]
        text = [p for part, factors in self.low_rank.items() if part != "unet" for p in factors.values()]
        words = [p for parts in self.vectors.values() for p in parts.values()]
        rates = ((unet, recipe.unet_lr), (text, recipe.text_encoder_lr))
        decay = recipe.weight_decay
        groups: list[dict[str, object]] = [
            {"params": p, "lr": r, "weight_decay": decay, "words": False} for p, r in rates if p
        ]
        last: dict[str, object] = {"params": words, "lr": recipe.embedding_lr, "weight_decay": 0.0, "words": True}
        return [*groups, last] if words else groups

    @property
    def learned(self) -> LearnedWords:
        """The new words as they now are."""
        return {word: {e: p.detach() for e, p in parts.items()} for word, parts in self.vectors.items()}

    def words_norm(self) -> float:
        """The largest mean norm of the new vectors of one text encoder."""
        by_encoder: dict[str, list[Tensor]] = {}
        for parts in self.vectors.values():
            for encoder, vectors in parts.items():
                by_encoder.setdefault(encoder, []).append(vectors.detach().norm(dim=-1).mean())
        return max((float(torch.stack(norms).mean()) for norms in by_encoder.values()), default=0.0)

    def freeze_words(self) -> None:
        """The new words stay as they are."""
        for parts in self.vectors.values():
            for vectors in parts.values():
                vectors.requires_grad_(False)
                vectors.grad = None

    def adapter(self) -> Adapter:
        """The low-rank layers as they now are."""
        each = (as_adapter(part, factors, self.scale) for part, factors in self.low_rank.items())
        return {path: entry for adapter in each for path, entry in adapter.items()}

    def whole(self) -> dict[str, Tensor]:
        """The model's own layers as they now are."""
        return {f"unet.{path}": halved(p) for path, p in self.weights.items()}

    def tokens(self, words: Sequence[str], per_layer: bool) -> dict[str, dict[str, Tensor]]:
        """These words as a concept has them: (n, d), or one of each layer (l, d)."""
        pick = (slice(None), 0) if per_layer else (0,)
        return {w: {e: p.detach().cpu()[pick].clone() for e, p in self.vectors[w].items()} for w in words}


@contextmanager
def trained_on(model: Model, teachings: Sequence[TrainingSubject], recipe: Recipe) -> Iterator[Trained]:
    """Within the block these parts of the model can be trained; afterwards it is as it was."""
    rank, alpha = recipe.rank, recipe.alpha
    factors, weights = dict[str, Mapping[str, nn.Parameter]](), dict[str, nn.Parameter]()
    vectors = _vectors(model, teachings, recipe)
    with ExitStack() as stack:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)  # peft draws the first factors from here
            if recipe.unet == "lora":
                factors["unet"] = stack.enter_context(
                    low_rank(model.unet, UNET_LAYERS[recipe.lora_layers], rank, alpha)
                )
            for encoder in model.encoders if recipe.text_encoder == "lora" else ():
                factors[encoder.name] = stack.enter_context(low_rank(encoder.module, TEXT_LAYERS, rank, alpha))
        if recipe.unet in ("keys_values", "full"):
            ends = CROSS_KEYS_VALUES if recipe.unet == "keys_values" else ()
            weights = stack.enter_context(own_weights(model.unet, ends))
        if recipe.gradient_checkpointing:
            stack.enter_context(_checkpointing(model))
        yield Trained(factors, weights, vectors, alpha / rank)


def _vectors(model: Model, teachings: Sequence[TrainingSubject], recipe: Recipe) -> Vectors:
    """{word: {encoder: (l, n, d)}} of every word to be learned."""
    layers = count_cross_layers(model.unet) if recipe.per_layer_embeddings else 1
    generator = torch.Generator().manual_seed(recipe.seed)
    classes = [teaching.class_name.lower() for teaching in teachings]
    return {
        word: {
            e.name: nn.Parameter(
                first_vectors(
                    e,
                    None if recipe.embedding_init == "random" and number == 0 else teaching.class_name,
                    layers,
                    recipe.vectors_per_token,
                    generator,
                    classes.count(teaching.class_name.lower()) > 1,
                ).to(model.device)
            )
            for e in model.encoders
        }
        for teaching in teachings
        for number, word in enumerate(teaching.trigger_words[: recipe.num_new_tokens])
    }


@contextmanager
def _checkpointing(model: Model) -> Iterator[None]:
    """Within the block the UNet keeps few activations and computes the rest again (Chen et al. 2016)."""
    training = model.unet.training
    model.unet.enable_gradient_checkpointing()
    model.unet.train()  # diffusers looks at both
    try:
        yield
    finally:
        model.unet.disable_gradient_checkpointing()
        model.unet.train(training)
