"""A training task: subjects to train on a model with a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from costars.model.families import count_cross_layers
from costars.model.model import Model
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject, check_subject, collect_class_examples
from costars.train.precision import resolve_precision
from costars.train.recipe import Recipe


@dataclass(frozen=True)
class TrainingTask:
    """Everything that a training run needs; skipped has one line for each image that could not be read."""

    model: Model
    subjects: Sequence[TrainingSubject]
    recipe: Recipe
    skipped: tuple[str, ...] = ()

    @property
    def embedding_layers(self) -> int:
        """Number of cross-attention layers that read embeddings of their own; 1 if all read the same."""
        return count_cross_layers(self.model.unet) if self.recipe.per_layer_embeddings else 1

    @property
    def examples(self) -> list[Example]:
        """Training examples of all subjects."""
        return [example for subject in self.subjects for example in subject.examples]

    @property
    def class_examples(self) -> list[Example]:
        """Class images of all subjects; empty if the model generates them. Raises TrainError if they are unusable."""
        return collect_class_examples(self.subjects, self.recipe)

    @property
    def class_captions(self) -> tuple[str, ...]:
        """Captions of the class images that the model generates, each once."""
        return tuple(dict.fromkeys(caption for s in self.subjects for caption in s.class_captions()))

    @property
    def vectors_per_word(self) -> dict[str, int]:
        """{new word: number of its embedding vectors}."""
        return {word: self.recipe.vectors_per_token for s in self.subjects for word in self.new_words(s)}

    def new_words(self, subject: TrainingSubject) -> tuple[str, ...]:
        """Words of the subject's trigger that are learned."""
        return subject.trigger_words[: self.recipe.num_new_tokens]

    def checked(self) -> TrainingTask:
        """The task with precision=auto replaced. Raises TrainError if subjects, recipe or model do not go together."""
        for subject in self.subjects:
            check_subject(subject, self.recipe)
        collect_class_examples(self.subjects, self.recipe)
        return replace(self, recipe=replace(self.recipe, precision=resolve_precision(self.recipe, self.model)))
