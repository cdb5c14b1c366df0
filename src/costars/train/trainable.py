"""The trainable parameters of a run and the concept tensors that they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from costars.model.families import CROSS_KEYS_VALUES
from costars.model.model import Model
from costars.train.embeddings import TokenEmbeddings, class_embeddings, random_embeddings
from costars.train.full_weights import trainable_weights
from costars.train.lora_layers import TEXT_LAYERS, UNET_LAYERS, lora_layers, round_to_half, to_adapter
from costars.train.recipe import Recipe
from costars.train.task import TrainingTask
from costars.types import Adapter, Change, LearnedWords


@dataclass(frozen=True)
class Trainable:
    """Trainable parameters, all in float32: LoRA factors by part, full UNet weights, and embeddings of new words."""

    lora: Mapping[str, Mapping[str, nn.Parameter]] = field(default_factory=dict)
    weights: Mapping[str, nn.Parameter] = field(default_factory=dict)
    embeddings: TokenEmbeddings = field(default_factory=dict)
    lora_scale: float = 1.0  # alpha / rank

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by unique names, those of the checkpoint."""
        named = {f"{part}/{path}": p for part, factors in self.lora.items() for path, p in factors.items()}
        named |= {f"weights/{path}": p for path, p in self.weights.items()}
        return named | {f"words/{e}/{word}": p for word, parts in self.embeddings.items() for e, p in parts.items()}

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, object]]:
        """Parameters with their learning rates, as a torch optimizer takes them; embeddings have no weight decay."""
        unet = [*self.lora.get("unet", {}).values(), *self.weights.values()]
        text = [p for part, factors in self.lora.items() if part != "unet" for p in factors.values()]
        embeddings = [p for parts in self.embeddings.values() for p in parts.values()]
        decay = recipe.weight_decay
        groups: list[dict[str, object]] = [
            {"params": params, "lr": lr, "weight_decay": decay, "is_embedding": False}
            for params, lr in ((unet, recipe.unet_lr), (text, recipe.text_encoder_lr))
            if params
        ]
        if embeddings:
            groups.append({"params": embeddings, "lr": recipe.embedding_lr, "weight_decay": 0.0, "is_embedding": True})
        return groups

    @property
    def learned_words(self) -> LearnedWords:
        """The current embeddings of the new words."""
        return {word: {e: p.detach() for e, p in parts.items()} for word, parts in self.embeddings.items()}

    def embedding_norm(self) -> float:
        """Mean norm of the new embeddings, the largest over the text encoders; 0 if there are none."""
        by_encoder: dict[str, list[Tensor]] = {}
        for parts in self.embeddings.values():
            for encoder, vectors in parts.items():
                by_encoder.setdefault(encoder, []).append(vectors.detach().norm(dim=-1).mean())
        return max((float(torch.stack(norms).mean()) for norms in by_encoder.values()), default=0.0)

    def freeze_embeddings(self) -> None:
        """Stop training the embeddings."""
        for parts in self.embeddings.values():
            for vectors in parts.values():
                vectors.requires_grad_(False)
                vectors.grad = None

    def adapter(self) -> Adapter:
        """The current LoRA layers, as a concept stores them."""
        adapter: dict[str, Change] = {}
        for part, factors in self.lora.items():
            adapter.update(to_adapter(part, factors, self.lora_scale))
        return adapter

    def full_weights(self) -> dict[str, Tensor]:
        """The current full weights, as a concept stores them."""
        return {f"unet.{path}": round_to_half(p) for path, p in self.weights.items()}

    def concept_tokens(self, words: Sequence[str], per_layer: bool) -> dict[str, dict[str, Tensor]]:
        """The current embeddings of these words, as a concept stores them: (n, d), or per layer (l, d)."""
        pick = (slice(None), 0) if per_layer else (0,)
        return {w: {e: p.detach().cpu()[pick].clone() for e, p in self.embeddings[w].items()} for w in words}


@contextmanager
def make_trainable(task: TrainingTask) -> Iterator[Trainable]:
    """Make the parts of the model that the recipe trains trainable for the block; the model is restored afterwards."""
    model, recipe = task.model, task.recipe
    rank, alpha = recipe.rank, recipe.alpha
    lora, weights = dict[str, Mapping[str, nn.Parameter]](), dict[str, nn.Parameter]()
    embeddings = _initial_embeddings(task)
    with ExitStack() as stack:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)  # peft initializes factors from this generator
            if recipe.unet == "lora":
                lora["unet"] = stack.enter_context(
                    lora_layers(model.unet, UNET_LAYERS[recipe.lora_layers], rank, alpha)
                )
            for encoder in model.encoders if recipe.text_encoder == "lora" else ():
                lora[encoder.name] = stack.enter_context(lora_layers(encoder.module, TEXT_LAYERS, rank, alpha))
        if recipe.unet in ("keys_values", "full"):
            suffixes = CROSS_KEYS_VALUES if recipe.unet == "keys_values" else ()
            weights = stack.enter_context(trainable_weights(model.unet, suffixes))
        if recipe.gradient_checkpointing:
            stack.enter_context(_gradient_checkpointing(model))
        yield Trainable(lora=lora, weights=weights, embeddings=embeddings, lora_scale=alpha / rank)


def _initial_embeddings(task: TrainingTask) -> TokenEmbeddings:
    """{word: {encoder: (l, n, d)}} of all new words."""
    recipe, shape = task.recipe, (task.embedding_layers, task.recipe.vectors_per_token)
    generator = torch.Generator().manual_seed(recipe.seed)
    classes = [subject.class_name.lower() for subject in task.subjects]
    embeddings: dict[str, dict[str, nn.Parameter]] = {}
    for subject in task.subjects:
        shares_class = classes.count(subject.class_name.lower()) > 1
        for number, word in enumerate(task.new_words(subject)):
            embeddings[word] = {}
            for encoder in task.model.encoders:
                if recipe.embedding_init == "random" and number == 0:
                    vectors = random_embeddings(encoder, shape, generator)
                else:
                    vectors = class_embeddings(encoder, subject.class_name, shape, generator, jitter=shares_class)
                embeddings[word][encoder.name] = nn.Parameter(vectors.to(task.model.device))
    return embeddings


@contextmanager
def _gradient_checkpointing(model: Model) -> Iterator[None]:
    """Recompute the UNet's activations in the backward pass (Chen et al. 2016, arXiv 1604.06174) for the block."""
    was_training = model.unet.training
    model.unet.enable_gradient_checkpointing()
    model.unet.train()  # diffusers checkpoints only modules in training mode
    try:
        yield
    finally:
        model.unet.disable_gradient_checkpointing()
        model.unet.train(was_training)
