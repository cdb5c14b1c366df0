"""Words and masks learned together: what is drawn of a picture, when masks are made, and what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.em import report as em_report
from costars.train.em.estep_masks import Evidence, estimate_masks
from costars.train.em.group_images import make_caption, collect_group_images
from costars.train.em.objective import em_objective
from costars.train.loop import TEACHING, Taught, teach
from costars.train.recipes import RECIPES, Em, Recipe
from costars.train.trainable import trained_on


def half(left: bool) -> np.ndarray:
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:, :32] = left
    mask[:, 32:] = not left
    return mask


def lessons(masked: bool = True) -> tuple[TrainingSubject, TrainingSubject]:
    """ana is on the left of both pictures, rex on the right of the first."""
    pictures = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "green")]
    for each in pictures:
        each.paste("blue", (32, 0, 64, 64))
    files = ("one.png", "two.png")
    ana = [Example(p, None, half(True) if masked else None, f) for p, f in zip(pictures, files, strict=True)]
    rex = [Example(pictures[0], None, half(False) if masked else None, files[0])]
    return TrainingSubject("ana", "woman", "<ana>", ana), TrainingSubject("rex", "dog", "<rex>", rex)


@pytest.fixture
def brief() -> Recipe:
    em = Em(
        attention_cell_px=(16, 32),
        refresh_every_steps=2,
        rows_per_call=2,
        estep=replace(Em().estep, timesteps=3, crf_size_px=16),
    )
    builtin = RECIPES["em"]["builtin"]
    return replace(
        builtin,
        steps=4,
        batch_size=3,
        rank=2,
        alpha=2,
        embedding_only_steps=2,
        vectors_per_token=1,
        em=em,
        lr_decay_fraction=0.0,
    )


@pytest.fixture
def objective(small, brief):
    """The objective of both lessons, with masks made in this way."""

    def of(masks: str):
        em = replace(brief.em, masks=masks)
        with (
            trained_on(small, lessons(), brief) as trained,
            em_objective(small, lessons(), brief, trained, em) as made,
        ):
            yield made

    return of


def test_pictures_know_who_is_in_them_and_where():
    one, two = collect_group_images(lessons())
    assert (one.names, two.names) == (("ana", "rex"), ("ana",))
    assert np.array_equal(one.given["rex"], half(False)) and "rex" not in two.given


def test_a_caption_names_the_concepts_and_nothing_else():
    called = {"ana": "<ana> woman", "rex": "<rex> dog"}
    assert make_caption(("ana", "rex"), called, "a photo of {}") == "a photo of a <ana> woman and a <rex> dog"
    assert make_caption(("ana", "rex", "ana"), called, "{}") == "a <ana> woman, a <rex> dog and a <ana> woman"


def with_meadow() -> tuple[TrainingSubject, ...]:
    """The lessons, and the meadow that is around ana and rex in the first picture."""
    ana, rex = lessons()
    narrow = half(False)
    narrow[:, 48:] = 0  # a strip at the right is nobody's
    rex = replace(rex, examples=[replace(rex.examples[0], mask=narrow)])
    return TrainingSubject("m", "park", "<m>", [replace(rex.examples[0], mask=None)], background=True), ana, rex


def test_a_background_is_what_is_around_the_others():
    one, two = collect_group_images(with_meadow())
    assert (one.names, one.figures, one.background) == (("ana", "rex", "m"), ("ana", "rex"), "m")
    assert np.array_equal(sum(one.given.values()), np.ones((64, 64))) and one.given["m"][:, 48:].all()
    assert (two.names, two.background) == (("ana",), "")
    called = {"ana": "<ana> woman", "rex": "<rex> dog", "m": "<m> park"}
    assert make_caption(("ana", "rex", "m"), called, "{}", "m") == "a <ana> woman and a <rex> dog in a <m> park"
    assert make_caption(("m",), called, "a photo of {}", "m") == "a photo of a <m> park"


def test_reports_call_masks_as_their_pictures(tmp_path):
    """Whatever the order of the concepts: the background comes first, of the second picture alone."""
    meadow, ana, rex = with_meadow()
    meadow = replace(meadow, examples=[replace(ana.examples[1], mask=None)])
    rows = collect_group_images((meadow, ana, rex))
    masks = {(i, name): rows[i].given[name] for i, picture in enumerate(rows) for name in picture.names}
    em_report.write(em_report.MaskHistory((meadow, ana, rex), masks=masks), tmp_path)
    drawn = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "masks").iterdir()}
    assert set(drawn) == {"one.ana.png", "one.rex.png", "two.ana.png", "two.m.png"}
    assert np.array_equal(drawn["two.m.png"], 255 - drawn["two.ana.png"])


def test_a_background_of_which_nothing_is_left_is_told(small, brief):
    meadow, ana, rex = with_meadow()
    whole = [replace(example, mask=np.ones((64, 64), dtype=np.float32)) for example in ana.examples]
    each = (meadow, replace(ana, examples=whole), rex)
    recipe = replace(brief, embedding_init="random", em=replace(brief.em, masks="given"))
    with (
        trained_on(small, each, recipe) as trained,
        em_objective(small, each, recipe, trained, recipe.em) as made,
        pytest.raises(TrainError, match=r"m: the others leave nothing of it, in no picture; add one that shows more"),
    ):
        made.before(0)


@pytest.mark.parametrize("masks", ["learned", "given"])
def test_cells_that_the_model_does_not_have_are_told(small, brief, masks):
    em = replace(brief.em, masks=masks, attention_cell_px=(8, 32))
    with (
        trained_on(small, lessons(), brief) as trained,
        pytest.raises(
            TrainError, match=r"em.attention_cell_px: \[8, 32\]; no attention of this model has cells of 8 px, it"
        ),
        em_objective(small, lessons(), brief, trained, em),
    ):
        pass


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_estep_of_oblong_images_uses_all_evidence(small, brief, gradient_checkpointing, monkeypatch):
    """Of self-attention on the cells of 150 x 50 px too, and where activations are computed again."""
    each = [replace(t, examples=[wide(e.image, e.mask, e.name) for e in t.examples]) for t in lessons()]
    recipe = replace(brief, max_aspect_ratio=3.0, gradient_checkpointing=gradient_checkpointing)
    asked = []

    def noted(evidence, *rest):
        asked.append(evidence)
        return estimate_masks(evidence, *rest) | {"ana": np.ones((32, 96), dtype=np.float32)}

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", noted)
    with (
        trained_on(small, each, recipe) as trained,
        em_objective(small, each, recipe, trained, recipe.em) as made,
    ):
        made.em = replace(made.em, estep=replace(made.em.estep, max_mask_fraction=1.0))
        found = made._estep(0)
        assert [evidence.kin.shape for evidence in asked] == [(12, 12)] * 2
        assert {mask.shape for mask in found.values()} == {(50, 200)}


def test_two_backgrounds_of_one_picture_are_refused():
    meadow, ana, rex = with_meadow()
    with pytest.raises(TrainError, match=r"one\.png: two backgrounds, m and hill; say in a caption which it shows"):
        collect_group_images((meadow, ana, rex, replace(meadow, name="hill")))


def test_a_background_is_learned_from_what_the_others_leave(small, brief, monkeypatch):
    asked = []

    def estimate_masks(evidence, image, how, before):
        asked.append((list(evidence.maps), list(evidence.errors)))
        return {name: half(name == "ana") * (np.arange(64) < 48) for name in evidence.maps}

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", estimate_masks)
    with (
        trained_on(small, with_meadow(), replace(brief, embedding_init="random")) as trained,
        em_objective(small, with_meadow(), brief, trained, brief.em) as made,
    ):
        made.before(0)
        assert asked == [(["ana", "rex"], ["ana", "rex"]), (["ana"], [])]
        assert np.array_equal(made.masks[0, "m"], np.ones((64, 64)) * (np.arange(64) >= 48))
        draws = {made._draw(torch.Generator().manual_seed(seed)) for seed in range(60)}
        assert {(0, ("m",)), (0, ("ana", "rex", "m")), (0, ("rex", "m"))} < draws
        assert made.loss(torch.Generator().manual_seed(0)).isfinite()


def test_every_subset_of_a_picture_is_drawn(objective):
    for made in objective("given"):
        made.before(0)
        draws = {made._draw(torch.Generator().manual_seed(seed)) for seed in range(60)}
        assert draws == {(0, ("ana",)), (0, ("rex",)), (0, ("ana", "rex")), (1, ("ana",))}


def test_given_masks_are_taken_as_they_are(objective):
    for made in objective("given"):
        made.before(0)
        assert np.array_equal(made.masks[0, "ana"], half(True)) and set(made.masks) == {
            (0, "ana"),
            (0, "rex"),
            (1, "ana"),
        }
        assert made.loss(torch.Generator().manual_seed(0)).isfinite()


def wide(image: Image.Image, mask: np.ndarray | None, name: str) -> Example:
    """The example as 200 x 50 px, of which the model's buckets leave 150 x 50 in the middle."""
    whole = np.zeros((50, 200), dtype=np.float32)
    whole[:, :100], whole[:, 100:] = (0, 0) if mask is None else (mask[0, 0], mask[0, -1])
    return Example(image.resize((200, 50)), None, whole, name)


@pytest.mark.parametrize("masks", ["learned", "given"])
def test_pictures_of_any_shape_are_learned_from(small, brief, masks, monkeypatch):
    """What is cut away of a picture is in no mask that is learned from, and masks are of the picture's own size."""
    each = [replace(t, examples=[wide(e.image, e.mask, e.name) for e in t.examples]) for t in lessons()]
    square = TrainingSubject(
        "bo", "man", "<bo>", [Example(Image.new("RGB", (96, 96), "red"), None, np.ones((96, 96), "f"), "3")]
    )
    monkeypatch.setattr(
        "costars.train.em.objective.estimate_masks",
        lambda evidence, image, *_: {name: np.ones(image.size[::-1], dtype=np.float32) for name in evidence.maps},
    )
    recipe = replace(brief, max_aspect_ratio=3.0, em=replace(brief.em, masks=masks))
    with (
        trained_on(small, [*each, square], recipe) as trained,
        em_objective(small, [*each, square], recipe, trained, recipe.em) as made,
    ):
        made.before(0)
        assert {mask.shape for mask in made.masks.values()} == {(50, 200), (96, 96)}
        assert [image.size for image in made.fitted] == [(96, 32), (96, 32), (64, 64)]
        assert all(mask.shape == made.fitted[i].size[::-1] for (i, _), mask in made.fitted_masks.items())
        if masks == "given":
            assert made.fitted_masks[0, "ana"].mean() == pytest.approx(0.5, abs=0.02)
        else:
            found = made.masks[0, "ana"]
            cut_away = [not found[:, column].any() for column in range(200)]
            assert cut_away[:25] == cut_away[175:] == [True] * 25 and not any(cut_away[25:175])
        assert made.loss(torch.Generator().manual_seed(0)).isfinite()


def test_two_pictures_of_one_name_are_refused():
    ana, rex = lessons()
    other = replace(rex, examples=[replace(rex.examples[0], image=Image.new("RGB", (64, 64)))])
    with pytest.raises(TrainError, match=r"one\.png: two pictures are called so; rename one"):
        collect_group_images((ana, other))


def test_a_concept_that_is_found_nowhere_is_told(objective, monkeypatch):
    for made in objective("learned"):
        nothing = {(i, name): half(True) * (name == "ana") for i, name in ((0, "ana"), (0, "rex"), (1, "ana"))}
        monkeypatch.setattr(type(made), "_estep", lambda self, step, masks=nothing: masks)
        with pytest.raises(
            TrainError, match=r"rex: its words look nowhere in particular, in no picture; draw PICTURE\.rex"
        ):
            made.before(0)


def test_who_was_not_found_in_a_picture_is_not_learned_from_it(objective, monkeypatch):
    for made in objective("learned"):
        some = {(0, "ana"): half(True) * 0, (0, "rex"): half(False), (1, "ana"): half(True)}
        monkeypatch.setattr(type(made), "_estep", lambda self, step, masks=some: masks)
        made.before(0)
        draws = {made._draw(torch.Generator().manual_seed(seed)) for seed in range(40)}
        assert draws == {(0, ("rex",)), (1, ("ana",))}


@pytest.mark.parametrize(("masks", "when"), [("learned", [0, 2, 4]), ("frozen", [0])])
def test_masks_are_made_when_it_is_time(objective, masks, when, monkeypatch):
    for made in objective(masks):
        monkeypatch.setattr(type(made), "_estep", lambda self, step: {(0, str(step)): half(True)})
        made_at = []
        for step in range(6):
            made.before(step)
            made_at += [int(at) for _, at in made.masks if int(at) not in made_at]
        assert made_at == when


def test_the_words_of_each_concept_are_looked_at(objective):
    """A concept's map is of its own words: another caption has them elsewhere."""
    for made in objective("given"):
        made._text([("ana", "rex"), ("rex",)])
        picked = made.gaze.picked
        assert picked.shape[:2] == (2, 2) and torch.allclose(picked.sum(dim=2), torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        assert not (picked[0, 0] * picked[0, 1]).any()
        made.gaze.at(())


def test_only_what_lies_in_the_masks_of_the_drawn_concepts_counts(objective, monkeypatch):
    for made in objective("given"):
        made.before(0)
        real, weights = type(made)._errors, []
        monkeypatch.setattr(
            type(made), "_errors", lambda *args, real=real, into=weights: into.append(args) or real(*args)
        )
        made.loss(torch.Generator().manual_seed(0))
        for rows, _, _, counted in (args[1:] for args in weights):
            for (_, names), own in zip(rows, counted, strict=True):
                left, right = own[0, :, :4], own[0, :, 4:]
                assert bool(left.any()) == ("ana" in names) and bool(right.any()) == ("rex" in names)


def test_words_learn_first_then_the_layers(small, brief):
    steps = []
    for event in teach(small, lessons(), brief):
        if isinstance(event, Taught):
            concepts = event.concepts
        elif event.stage == TEACHING:
            steps.append({w: parts["text_encoder"].clone() for w, parts in event.learned.items()})
    assert [concept.name for concept in concepts] == ["ana", "rex"]
    assert [list(concept.tokens) for concept in concepts] == [["<ana>"], ["<rex>"]]
    assert not torch.equal(steps[0]["<ana>"], steps[1]["<ana>"])
    ups = [float(entry.up.abs().max()) for entry in concepts[0].adapter.values()]
    assert max(ups) > 0
    alone = replace(brief, steps=2)
    *_, taught = teach(small, lessons(), alone)
    assert all(float(entry.up.abs().max()) == 0 for entry in taught.concepts[0].adapter.values())


def test_a_stopped_run_goes_on_with_the_masks_it_had(small, brief, tmp_path):
    unbroken = [e.loss for e in teach(small, lessons(False), brief) if not isinstance(e, Taught)]
    kept = tmp_path / "checkpoint.safetensors"
    events = teach(small, lessons(False), brief, kept)
    before = [next(events).loss for _ in range(3)]
    events.close()
    rest = [e.loss for e in teach(small, lessons(False), brief, kept, resume=True) if not isinstance(e, Taught)]
    assert before + rest == unbroken


def test_masks_that_are_to_be_given_must_be(small, brief):
    recipe = replace(brief, em=replace(brief.em, masks="given"))
    with pytest.raises(TrainError, match=r"em.masks=given: one.png has no mask of ana, rex; put PICTURE.NAME.mask"):
        list(teach(small, lessons(False), recipe))


@pytest.fixture
def told(monkeypatch):
    """What each mask was made of, where errors are nothing but the noise that was drawn."""
    told: list[Evidence] = []

    def estimate_masks(evidence, image, how, before):
        told.append(evidence)
        return {name: np.ones(image.size[::-1], dtype=np.float32) for name in evidence.maps}

    def squared_errors(unet, levels, latents, text, size_ids, generator):
        noise = torch.randn(latents.shape, generator=generator)
        unet(noise, 1, text[0], added_cond_kwargs={"text_embeds": text[1], "time_ids": size_ids})
        return noise, noise

    monkeypatch.setattr("costars.train.em.objective.estimate_masks", estimate_masks)
    monkeypatch.setattr("costars.train.em.evidence.squared_errors", squared_errors)
    return told


def test_all_concepts_of_a_picture_are_held_against_the_same_noise(objective, told):
    for made in objective("learned"):
        made.before(0)
    several, alone = told
    assert not alone.errors and list(several.errors) == list(several.maps) == ["ana", "rex"]
    errors = several.errors.values()
    assert len({error.numpy().tobytes() for error in errors}) == 1
    assert {error.shape for error in errors} == {made.latents[0].shape[-2:]}


def test_kin_are_the_finest_cells_that_are_looked_at(objective, told):
    for made in objective("learned"):
        made.before(0)
    h, w = made.latents[0].shape[-2:]
    finest = min(made.em.attention_cell_px) // made.model.facts.cell_px
    for evidence in told:
        assert evidence.kin is not None and len(evidence.kin) == (h // finest) * (w // finest)
        rows = evidence.kin.sum(dim=1)
        assert torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-3)  # each layer's and timestep's sum to one
    assert made.gaze.kin_of == 0


def test_masks_of_attention_alone_need_no_errors(objective, told):
    for made in objective("learned"):
        made.em = replace(made.em, estep=replace(made.em.estep, use_likelihood=False))
        made.before(0)
    assert [(evidence.kin, dict(evidence.errors)) for evidence in told] == [(None, {})] * 2


def test_masks_stay_after_their_last_step(objective, told):
    for made in objective("learned"):
        made.em = replace(made.em, freeze_after_steps=2)
        for step in range(7):
            made.before(step)
    assert len(told) == 2 * len((0, 2))
