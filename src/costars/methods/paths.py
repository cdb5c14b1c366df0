"""Which paths a picture is drawn along: each with its words, its adapter, and whose control it is under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from costars.errors import SceneError
from costars.methods.encode import encoded, negative_text
from costars.methods.prompts import class_names, everyone_prompt, global_prompt, member_prompt
from costars.model.lora import concatenated, scaled, text_adapter
from costars.model.model import Model
from costars.scene.options import TwoStage
from costars.types import Adapter, Concept, Job, LearnedWords, Path, Text

EVERYONE, STYLE = "{}", "{style}"  # adapters of the whole cast and of the whole picture; no member has these names


def cast_adapter(job: Job, member: str) -> Adapter:
    """A member's adapter at its weight; with a style, the style's beside it at the weight for members."""
    scene = job.scene
    own = scaled(job.concepts[member].adapter, scene.cast[member].weight)
    if job.style is None or scene.style is None:
        return own
    return concatenated([own, scaled(job.style.adapter, scene.style.member_weight)])


def style_adapter(job: Job) -> dict[str, Adapter]:
    """The style's adapter for the rows that know no identity; nothing without a style."""
    if job.style is None or job.scene.style is None:
        return {}
    return {STYLE: scaled(job.style.adapter, job.scene.style.weight)}


def everyone_adapter(job: Job) -> Adapter:
    """All members' adapters and the style's in one."""
    scene = job.scene
    own = [scaled(job.concepts[name].adapter, scene.cast[name].weight) for name in scene.cast]
    return concatenated([*own, *style_adapter(job).values()])


def stage1_path(model: Model, job: Job) -> Path:
    """The global path: class words only, in the scene's style."""
    classes = class_names(job.scene, job.concepts)
    words = sorted(set(classes.values()))
    return _global_path(model, job, global_prompt(job.scene, classes), words)


def _global_path(model: Model, job: Job, prompt: str, words: Sequence[str] = ()) -> Path:
    """The prompt without identities, under the style's adapter if there is one."""
    scene, styles, learned = job.scene, style_adapter(job), learned_words(job)
    with text_adapter(model.encoders, styles.get(STYLE, {})):
        text = encoded(model, scene, prompt, words, learned)
        negative = negative_text(model, scene, learned=learned)
    return Path("global", text, negative, STYLE if styles else None, controlled=True)


def stage2_paths(
    model: Model, job: Job, prompt: str, members: Mapping[str, object], latents: Tensor
) -> tuple[list[Path], dict[str, Adapter]]:
    """Layout replay, global, then one path for each member; and the adapters that they name.

    prompt is the one that the layout was drawn from, latents (s + 1, c, h, w) are the layout's.
    """
    method = job.scene.method
    assert isinstance(method, TwoStage)
    adapters, whole = style_adapter(job), _global_path(model, job, prompt)
    layout = replace(whole, name="layout", negative=None, replay=latents)
    paths = [layout] if method.layout_strength > 0 else []
    if not method.blend:
        everyone = everyone_adapter(job)
        return [*paths, everyone_path(model, job, everyone)], {**adapters, EVERYONE: everyone}
    paths.append(whole)
    for name in members:
        adapters[name] = cast_adapter(job, name)
        with text_adapter(model.encoders, adapters[name]):
            paths.append(Path(name, *_member_texts(model, job, name), adapter=name))
    return paths, adapters


def everyone_path(model: Model, job: Job, adapter: Adapter) -> Path:
    """One path with every member's own words, under the adapter of them all."""
    scene = job.scene
    prompt = everyone_prompt(scene, class_names(scene, job.concepts), job.concepts)
    learned = learned_words(job, *scene.cast)
    with text_adapter(model.encoders, adapter):
        text = encoded(model, scene, prompt, learned=learned)
        return Path("everyone", text, negative_text(model, scene, learned=learned), adapter=EVERYONE, controlled=True)


def _member_texts(model: Model, job: Job, name: str) -> tuple[Text, Text | None]:
    scene, concepts = job.scene, job.concepts
    prompt = member_prompt(scene, name, class_names(scene, concepts), concepts[name])
    learned = learned_words(job, name)
    negative = negative_text(model, scene, scene.cast[name].negative_prompt, learned)
    return encoded(model, scene, prompt, learned=learned), negative


def learned_words(job: Job, *members: str) -> LearnedWords:
    """The words that these members, and the style, were taught as.

    Raises SceneError where one word stands for two concepts in one prompt.
    """
    learned: dict[str, Mapping[str, Tensor]] = {}
    taught: dict[str, Concept] = {}
    for concept in [*(job.concepts[name] for name in members), *([job.style] if job.style else [])]:
        for word, parts in concept.words.items():
            if word in taught and taught[word].sha256 != concept.sha256:
                raise SceneError(
                    f"the word {word!r} is taught by {taught[word].source!r} and by {concept.source!r}, which are read "
                    "in one prompt; import one of them again with another --trigger"
                )
            learned[word], taught[word] = parts, concept
    return learned
