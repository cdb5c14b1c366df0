"""What of a concept a model can use, and what is refused."""

from dataclasses import replace

import pytest
import torch

from costars.errors import ConceptError, SceneError
from costars.resolve import check_prompts, fitted, without_trigger
from costars.types import LowRank

STRANGE = {"unet.no.such.layer": LowRank(torch.zeros(1, 4), torch.zeros(4, 1))}


def test_a_concept_that_fits_is_taken_as_it_is(tiny, concepts):
    taken, notes, fits = fitted(concepts, tiny)
    count = len(concepts["a"].adapter)
    assert notes == () and fits["a"] == f"{count} of {count} layers"
    assert taken["a"].adapter.keys() == concepts["a"].adapter.keys()


def test_layers_that_the_model_lacks_are_left_out_and_named(tiny, concepts):
    more = replace(concepts["a"], adapter={**concepts["a"].adapter, **STRANGE})
    taken, (note,), _ = fitted({"a": more}, tiny)
    assert taken["a"].adapter.keys() == concepts["a"].adapter.keys()
    total = len(more.adapter)
    assert note == f"a: 1 of {total} layers of 'char_a' are not in this model and are left out (unet.no.such.layer)"


def test_where_no_layer_is_there_the_concept_is_refused(tiny, concepts):
    with pytest.raises(ConceptError, match=r"'char_a': none of its 1 layers is in the model 'tiny' \(unet\.no"):
        fitted({"a": replace(concepts["a"], adapter=STRANGE)}, tiny)


def test_one_of_another_family_is_refused_naming_both(tiny, concepts):
    with pytest.raises(ConceptError, match="'char_a' is for sd15, the model 'tiny' is sdxl; use a concept"):
        fitted({"a": replace(concepts["a"], family="sd15")}, tiny)


def test_one_that_does_not_tell_its_family_is_held_against_the_layers_and_that_is_said(tiny, concepts):
    taken, (note,), _ = fitted({"a": replace(concepts["a"], family="")}, tiny)
    assert taken["a"].adapter.keys() == concepts["a"].adapter.keys()
    assert note == "a: 'char_a' does not say which base model it is for; its layers are in this one"
    with pytest.raises(ConceptError, match="none of its 1 layers is in the model"):
        fitted({"a": replace(concepts["a"], family="", adapter=STRANGE)}, tiny)


def test_a_layer_of_another_size_is_refused(tiny, concepts):
    key, entry = next(iter(concepts["a"].adapter.items()))
    wide = LowRank(torch.zeros(len(entry.down), 999), entry.up)
    with pytest.raises(ConceptError, match="it was made for another base model"):
        fitted({"a": replace(concepts["a"], adapter={**concepts["a"].adapter, key: wide})}, tiny)


def test_a_member_that_is_called_by_its_class_alone_is_told(concepts, make_scene):
    scene, untold = make_scene(), {**concepts, "b": replace(concepts["b"], trigger="sks")}
    (line,) = without_trigger(scene, untold)
    assert line.startswith("a: 'char_a' tells no trigger") and "set cast.a.trigger" in line
    told = scene.cast["a"].model_copy(update={"prompt": "a man in a park"})
    assert not without_trigger(scene.model_copy(update={"cast": {**scene.cast, "a": told}}), untold)


def test_a_trigger_in_the_scene_takes_the_place_of_the_files(library, golden):
    from costars.methods.prompts import class_names, member_prompt
    from costars.scene.scene import parse_scene
    from costars.studio import open_studio

    cast = {"a": {"concept": "char_a", "trigger": "ohwx"}, "b": "char_b"}
    scene = parse_scene({"prompt": "{a} and {b}", "cast": cast, "model": str(golden / "tiny-sdxl")})
    job = open_studio("cpu", library=library).resolve(scene)
    prompts = [member_prompt(scene, n, class_names(scene, job.concepts), job.concepts[n]) for n in "ab"]
    assert prompts == ["an ohwx man and a woman", "a man and a b woman"]


def test_a_prompt_without_the_word_that_was_taught_is_refused(tiny, concepts, make_scene):
    words = {e.name: torch.zeros(1, e.module.config.hidden_size) for e in tiny.encoders}
    taught = {**concepts, "a": replace(concepts["a"], tokens={"<zed>": words}, trigger="<zed>")}
    check_prompts(make_scene(), taught, None, tiny)
    with pytest.raises(SceneError, match=r"cast\.a: 'char_a' was taught as '<zed>', which 'an ohwx man"):
        check_prompts(
            make_scene(prompt="{a} and {b}"), taught | {"a": replace(taught["a"], trigger="ohwx")}, None, tiny
        )
    style = replace(taught["a"], source="ink")
    with pytest.raises(SceneError, match="style: 'ink' was taught as '<zed>'"):
        check_prompts(make_scene(), concepts, style, tiny)


def test_a_layer_that_the_text_encoders_lack_is_refused(tiny, concepts, make_scene):
    with pytest.raises(SceneError, match="clip_skip 12: the model's text encoders have 3 layers"):
        check_prompts(make_scene(clip_skip=12), concepts, None, tiny)
