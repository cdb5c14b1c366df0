"""What a person may ask to be taught, and what each mistake is called."""

from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from costars.errors import TrainError
from costars.train.config import _WITHIN, _numbers, resolve_folder, parse_config, recipe_of
from costars.train.data.dataset import load_dataset
from costars.train.recipes import RECIPES

MIA = {"name": "mia", "class": "woman", "images": "mia"}
REX = {"name": "rex", "class": "dog", "images": "rex"}


def fails(do, *args) -> str:
    with pytest.raises(TrainError) as caught:
        do(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_concept_may_be_written_without_the_list():
    spec = parse_config({"recipe": "lora", **MIA, "settings": {"steps": 5}})
    assert spec == parse_config({"recipe": "lora", "concepts": [MIA], "settings": {"steps": 5}})
    assert spec == parse_config(
        {"recipe": "lora", "name": "mia", "class_name": "woman", "images": "mia", "settings": {"steps": 5}}
    )
    assert (spec.model, spec.concepts[0].class_name, spec.concepts[0].trigger) == ("builtin", "woman", None)


def test_settings_change_single_numbers_of_the_recipe():
    spec = parse_config(
        {"recipe": "ed-lora", **MIA, "settings": {"steps": 5, "unet_lr": "1e-3", "embedding_init": "class"}}
    )
    for family, model in (("sdxl", "mine"), ("sd15", "mine"), ("sdxl", "builtin")):
        recipe = recipe_of(spec.model_copy(update={"model": model}), family)
        default = RECIPES["ed-lora"]["builtin" if model == "builtin" else family]
        assert (recipe.steps, recipe.unet_lr, recipe.embedding_init) == (5, 1e-3, "class")
        assert (recipe.rank, recipe.vectors_per_token, recipe.embedding_lr) == (
            default.rank,
            default.vectors_per_token,
            default.embedding_lr,
        )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "training: holds list, want keys and values: recipe, name, class and images"),
        ({"recipe": "lora"}, "training: concepts.0.name: Field required; concepts.0.class_name: Field required"),
        (
            {"recipe": "lora", **MIA, "steps": 5},
            "training: steps: unknown key; known: add_trigger, caption",
        ),
        ({"recipe": "lora", "concepts": [MIA | {"size": 1}]}, "training: concepts.0.size: unknown key; "),
        ({"recipe": "lora", "concepts": []}, "training: concepts: Tuple should have at least 1 item"),
        ({"recipe": "lora", **MIA, "name": "../mia"}, "training: concepts.0.name: String should match"),
        ({"recipe": "lora", **MIA, "name": "mia rose"}, "(got 'mia rose')"),
        ({"recipe": "dreamboth", **MIA}, "recipe 'dreamboth': did you mean 'dreambooth'? known: "),
        ({"recipe": "lora", "concepts": [MIA, MIA]}, "['mia', 'mia'] holds a name twice; give each concept a name"),
        (
            {"recipe": "dreambooth", "concepts": [MIA], "class_images": "a"},
            "class_images beside several concepts: each has its own; leave",
        ),
        ({"recipe": "lora", **MIA, "settings": {"steps": {"of": 1}}}, "training: settings.steps"),
        ({"recipe": "lora", **MIA, "settings": 3}, "training: settings: Input should be a valid dictionary (got 3)"),
    ],
)
def test_a_spec_that_is_wrong_says_where(data, said):
    assert said in fails(parse_config, data)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"step": 5}, "settings.step: no such setting; did you mean 'steps'"),
        ({"steps": "many"}, "settings.steps: Input should be a valid integer"),
        ({"steps": 2.5}, "settings.steps: "),
        ({"steps": [1]}, "settings.steps: "),
        ({"em.steps": 1}, "settings.em.steps: no such setting"),
        ({"optimizer": "sgd"}, "settings.optimizer: Input should be 'adamw', 'adafactor' or 'adamw8bit' (got 'sgd')"),
        ({"steps": 0}, "settings.steps: 0; want at least 1"),
        ({"batch_size": 0}, "settings.batch_size: 0; want at least 1"),
        ({"rank": -1}, "settings.rank: -1; want at least 1"),
        ({"unet": "none", "text_encoder": "none"}, "settings.num_new_tokens: 0, so nothing is learned"),
        (
            {"unet": "none", "text_encoder": "none", "num_new_tokens": 1, "embedding_norm_threshold": 1},
            "settings.embedding_norm_threshold: nothing would be left",
        ),
        ({"prior_loss_weight": 1}, "settings.num_class_images: 0; prior_loss_weight wants some, such as 200, or class"),
        (
            {"num_new_tokens": 1, "per_layer_embeddings": True, "vectors_per_token": 2},
            "settings.vectors_per_token: 2; per-layer words have one vector",
        ),
        ({"alpha": 0}, "settings.alpha: 0.0; want at least 0.001"),
        ({"max_grad_norm": -1}, "settings.max_grad_norm: -1.0; want at least 0"),
        ({"unet_lr": float("nan")}, "settings.unet_lr: nan; want at least 0"),
        ({"lr_decay_fraction": 2}, "settings.lr_decay_fraction: 2.0; want 0 to 1"),
        ({"num_new_tokens": 1}, "settings.embedding_lr: 0, so num_new_tokens=1 would not learn; set one, such as 1e-4"),
        ({"text_encoder_lr": 0}, "settings.text_encoder_lr: 0, so text_encoder=lora would not learn"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, said):
    assert said in fails(recipe_of, parse_config({"recipe": "lora", **MIA, "settings": settings}), "sdxl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"settings": {"steps": 4, "embedding_only_steps": 4}},
            "settings.embedding_only_steps: 4, of 4 steps; want fewer, or set",
        ),
        ({"settings": {"em.rows_per_call": 0}}, "settings.em.rows_per_call: 0; want at least 1"),
        ({"settings": {"em.refresh_every_steps": 0}}, "settings.em.refresh_every_steps: 0; want at least 1"),
        (
            {"settings": {"em.attention_cell_px": [0]}},
            "settings.em.attention_cell_px: [0]; want sizes in px, such as [32]",
        ),
        ({"settings": {"em.estep.crf_size_px": 129}}, "settings.em.estep.crf_size_px: 129; want 8 to 128"),
        ({"settings": {"em.estep.attention_floor": 0}}, "settings.em.estep.attention_floor: 0.0; want 0.001 to 1"),
        ({"settings": {"em.estep.crf.smooth_px": 0}}, "settings.em.estep.crf.smooth_px: 0.0; want at least 0.001"),
        (
            {"settings": {"em.caption_template": "a photo"}},
            "settings.em.caption_template: 'a photo'; want one {}, where the concepts",
        ),
        ({"settings": {"em.caption_template": "{} {x}"}}, "settings.em.caption_template: '{} {x}'; want one {}"),
        ({"settings": {"num_new_tokens": 0}}, "settings.num_new_tokens: 0; em finds each concept by its words"),
        (
            {"settings": {"per_layer_embeddings": True}},
            "settings.per_layer_embeddings: True; em does not use it, leave it False",
        ),
        ({"settings": {"flip_augmentation": True}}, "settings.flip_augmentation: True; em does not use it"),
        (
            {"settings": {"attention_full_identity": False}},
            "settings.attention_full_identity: False; em does not use it, leave it True",
        ),
        ({"settings": {"prior_loss_weight": 1}}, "settings.prior_loss_weight: 1.0; em does not use it"),
        ({"add_trigger": True}, "add_trigger: em writes its own captions; leave it out"),
        ({"caption": "blip"}, "caption: em writes its own captions"),
    ],
)
def test_what_em_cannot_use_is_refused(changes, said):
    assert said in fails(recipe_of, parse_config({"recipe": "em", **MIA} | changes), "sdxl")


def test_every_number_of_a_recipe_has_a_range():
    numbers = _numbers(asdict(RECIPES["em"]["sdxl"]))
    numbers = {name for name, value in numbers.items() if not isinstance(value, bool)}
    assert numbers == {name for names in _WITHIN.values() for name in names.split()} - {"snr_gamma"}  # which is None


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_may_be_taught_as_it_is(name):
    for model in ("builtin", "mine"):
        for family in ("sd15", "sdxl"):
            assert recipe_of(parse_config({"recipe": name, "model": model, **MIA}), family)


def test_folders_are_beside_the_file_that_names_them(tmp_path):
    assert resolve_folder("mia", tmp_path) == tmp_path / "mia"
    assert resolve_folder("/mia", tmp_path) == Path("/mia") and resolve_folder("mia", None) == Path("mia")
    assert resolve_folder("~/mia", tmp_path) == Path.home() / "mia"


def test_pictures_are_described_by_their_captions_a_model_or_their_class(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "mia").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "mia" / f"{name}.png")
    (tmp_path / "mia" / "a.txt").write_text("a woman in a park")

    def captions(describe=None, **changes):
        spec = parse_config({"recipe": "lora", **MIA} | changes)
        recipe = recipe_of(spec, "sdxl")
        (teaching,) = load_dataset(spec, recipe, tmp_path, describe).subjects
        return teaching.trigger, [example.caption for example in teaching.examples]

    assert captions() == ("mia", ["a woman in a park", "a mia woman"])
    assert captions(add_trigger=True)[1] == ["a mia woman in a park", "a mia woman"]
    assert captions(lambda image: "a woman at sea")[1] == ["a woman in a park", "a mia woman at sea"]
    assert captions(trigger="zxa", add_trigger=True) == ("zxa", ["a zxa woman in a park", "a zxa woman"])
    assert captions(recipe="ed-lora", add_trigger=True) == (
        "<mia1> <mia2>",
        ["a <mia1> <mia2> woman in a park", "a <mia1> <mia2> woman"],
    )
    spec = parse_config({"recipe": "lora", "name": "mia", "class": "woman"})
    assert "mia: no pictures are named; give images" in fails(load_dataset, spec, recipe_of(spec, "sdxl"), tmp_path)


def test_given_class_pictures_take_the_place_of_drawn_ones(tmp_path):
    for name in ("mia/a", "women/a", "women/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "women" / "a.txt").write_text("an old woman in a park")
    (tmp_path / "women" / "torn.png").write_bytes(b"")

    def spec(class_images, **settings):
        return parse_config({"recipe": "lora", **MIA, "class_images": class_images, "settings": settings})

    wanted = spec("women", prior_loss_weight=1)
    recipe = recipe_of(wanted, "sdxl")
    found = load_dataset(wanted, recipe, tmp_path)
    (teaching,) = found.subjects
    assert [example.caption for example in teaching.class_examples] == ["an old woman in a park", "a woman"]
    assert [example.caption for example in teaching.examples] == ["a mia woman"]
    assert (recipe.num_class_images, len(found.skipped)) == (0, 1) and found.skipped[0].startswith("'torn.png': ")
    said = "settings.num_class_images: 5; all of class_images are taken, leave one of the two out"
    assert said in fails(recipe_of, spec("women", prior_loss_weight=1, num_class_images=5), "sdxl")
    for folder, why in (("nowhere", "folder not found; give a folder of training images"), ("empty", "no usable image in the folder")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert f"pictures '{tmp_path / folder}': {why}" in fails(load_dataset, spec(folder), recipe, tmp_path)
