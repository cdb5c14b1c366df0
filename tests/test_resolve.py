"""What of a concept a model can use, and what is refused."""

from dataclasses import replace

import pytest
import torch

from costars.errors import ConceptError, SceneError
from costars.resolve import match_concepts, resolve_scene
from costars.scene.scene import parse_scene
from costars.studio import open_studio
from costars.types import LowRank

STRANGE = {"unet.no.such.layer": LowRank(torch.zeros(1, 4), torch.zeros(4, 1))}


def test_a_concept_that_fits_is_taken_as_it_is(tiny, concepts):
    taken, notes, fits = match_concepts(concepts, tiny)
    count = len(concepts["a"].adapter)
    assert notes == () and fits["a"] == f"{count} of {count} layers"
    assert taken["a"].adapter.keys() == concepts["a"].adapter.keys()


def test_layers_that_the_model_lacks_are_left_out_and_named(tiny, concepts):
    more = replace(concepts["a"], adapter={**concepts["a"].adapter, **STRANGE})
    taken, (note,), _ = match_concepts({"a": more}, tiny)
    assert taken["a"].adapter.keys() == concepts["a"].adapter.keys()
    total = len(more.adapter)
    assert note == f"a: 1 of {total} layers of 'char_a' are not in this model and are left out (unet.no.such.layer)"


def test_where_no_layer_is_there_the_concept_is_refused(tiny, concepts):
    with pytest.raises(ConceptError, match=r"'char_a': none of its 1 layers is in the model 'tiny' \(unet\.no"):
        match_concepts({"a": replace(concepts["a"], adapter=STRANGE)}, tiny)


def test_most_layers_of_a_part_must_be_there_unless_the_scene_allows_it(tiny, concepts, make_scene):
    (entry,) = STRANGE.values()
    encoder = {f"text_encoder.text_model.encoder.layers.{i}.gone": entry for i in range(99)}
    fewer = replace(concepts["a"], adapter={**concepts["a"].adapter, **encoder})
    with pytest.raises(
        ConceptError, match=r"'char_a': 99 of its \d+ layers of text_encoder are not in the model 'tiny'"
    ):
        match_concepts({"a": fewer}, tiny)
    scene = make_scene()
    with pytest.raises(ConceptError, match=r"set cast\.a\.allow_missing_layers: true to draw without them"):
        resolve_scene(scene, tiny, {**concepts, "a": fewer})
    allowed = scene.cast["a"].model_copy(update={"allow_missing_layers": True})
    resolved = resolve_scene(
        scene.model_copy(update={"cast": {**scene.cast, "a": allowed}}), tiny, {**concepts, "a": fewer}
    )
    assert any("99 of" in note and "are left out (text_encoder" in note for note in resolved.notes)
    assert resolved.members["a"].concept.adapter.keys() == concepts["a"].adapter.keys()


def test_notes_of_a_file_are_notes_of_the_scene(tiny, concepts):
    assert match_concepts({"a": replace(concepts["a"], notes=("odd",))}, tiny).notes == ("a: odd",)


def test_one_of_another_family_is_refused_naming_both(tiny, concepts):
    with pytest.raises(ConceptError, match="'char_a' is for sd15, the model 'tiny' is sdxl; use a concept"):
        match_concepts({"a": replace(concepts["a"], family="sd15")}, tiny)


def test_one_that_does_not_tell_its_family_is_held_against_the_layers_and_that_is_said(tiny, concepts):
    taken, (note,), _ = match_concepts({"a": replace(concepts["a"], family="")}, tiny)
    assert taken["a"].adapter.keys() == concepts["a"].adapter.keys()
    assert note == "a: 'char_a' does not say which base model it is for; its layers are in this one"
    with pytest.raises(ConceptError, match="none of its 1 layers is in the model"):
        match_concepts({"a": replace(concepts["a"], family="", adapter=STRANGE)}, tiny)


def test_a_layer_of_another_size_is_refused(tiny, concepts):
    key, entry = next(iter(concepts["a"].adapter.items()))
    wide = LowRank(torch.zeros(len(entry.down), 999), entry.up)
    with pytest.raises(ConceptError, match="it was made for another base model"):
        match_concepts({"a": replace(concepts["a"], adapter={**concepts["a"].adapter, key: wide})}, tiny)


def test_a_member_without_a_trigger_has_a_note(tiny, concepts, make_scene):
    scene, some = make_scene(), {**concepts, "b": replace(concepts["b"], trigger="sks")}
    line = resolve_scene(scene, tiny, some).notes[-1]
    assert line.startswith("a: 'char_a' states no trigger") and "set cast.a.trigger" in line
    given = scene.cast["a"].model_copy(update={"prompt": "a man in a park"})
    with_prompt = resolve_scene(scene.model_copy(update={"cast": {**scene.cast, "a": given}}), tiny, some)
    assert not any("trigger" in note for note in with_prompt.notes)


def test_a_trigger_in_the_scene_overrides_the_files(library, golden):
    cast = {"a": {"concept": "char_a", "trigger": "ohwx"}, "b": "char_b"}
    scene = parse_scene({"prompt": "{a} and {b}", "cast": cast, "model": str(golden / "tiny-sdxl")})
    members = open_studio("cpu", library=library).resolve(scene).members
    assert [members[n].prompt for n in "ab"] == ["an ohwx man and a woman", "a man and a b woman"]


def test_a_prompt_without_the_learned_word_is_rejected(tiny, concepts, make_scene):
    words = {e.name: torch.zeros(1, e.module.config.hidden_size) for e in tiny.encoders}
    learned = {**concepts, "a": replace(concepts["a"], tokens={"<zed>": words}, trigger="<zed>")}
    resolve_scene(make_scene(), tiny, learned)
    with pytest.raises(SceneError, match=r"cast\.a: 'char_a' has the learned word '<zed>', which the prompt 'an ohwx"):
        other = learned | {"a": replace(learned["a"], trigger="ohwx")}
        resolve_scene(make_scene(prompt="{a} and {b}"), tiny, other)
    style = replace(learned["a"], source="ink")
    with pytest.raises(SceneError, match="style: 'ink' has the learned word '<zed>'"):
        resolve_scene(make_scene(), tiny, concepts, style)


def test_clip_skip_beyond_the_text_encoders_is_rejected(tiny, concepts, make_scene):
    with pytest.raises(SceneError, match="clip_skip 12: the model's text encoders have 3 layers"):
        resolve_scene(make_scene(clip_skip=12), tiny, concepts)


def test_members_are_in_prompt_order_and_the_cast_in_the_scenes(tiny, concepts, make_scene):
    resolved = resolve_scene(make_scene(prompt="{b} and {a}"), tiny, concepts)
    assert list(resolved.members) == ["b", "a"] and [m.name for m in resolved.cast] == ["a", "b"]
    assert resolved.nouns == {"b": "woman", "a": "man"}
    assert (resolved.start, resolved.lowest_score) == (16 / 50, 0.3)
