"""Preview sheets."""

from dataclasses import replace

import torch

from costars.train.preview import make_preview


def test_preview_has_two_rows_per_concept(make_task, make_subject, short_recipe):
    recipe = short_recipe("lora")
    one = make_preview(make_task(recipe))
    two = make_preview(make_task(recipe, [make_subject(recipe), make_subject(recipe, "rex", "dog")]))
    assert one.width > 2 * 64 and one.height > 2 * 64 and two.height > 1.9 * one.height


def test_captions_that_name_several_concepts_are_replaced(make_task, make_subject, short_recipe, monkeypatch):
    prompts = []

    def sample_latent(model, prompt, *_):
        prompts.append(prompt)
        return torch.zeros(1, model.info.latent_channels, 8, 8)

    monkeypatch.setattr("costars.train.preview.sample_latent", sample_latent)
    recipe = short_recipe("em")
    subject = make_subject(recipe)
    examples = [replace(subject.examples[0], caption=caption) for caption in ("{mia} and {rex}", None, "a <mia> woman")]
    task = make_task(recipe, [replace(subject, examples=examples)])
    make_preview(task)
    assert prompts == ["a <mia> woman"] * 3
