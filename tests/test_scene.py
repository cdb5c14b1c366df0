"""The scene: what a person writes is read exactly, or one line says what is wrong."""

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from costars.errors import SceneError, nearest
from costars.methods.multi_lora.options import MultiLora
from costars.methods.omg.options import TwoStage
from costars.scene.defaults import STEPS_BY_MODEL, fill_defaults
from costars.scene.files import anchor_paths, load_scene, with_settings
from costars.scene.scene import CastMember, Scene, parse_scene

DATA = {"prompt": "{ana} in front of {bo}", "cast": {"ana": {"concept": "builtin/ana"}, "bo": {"concept": "bo"}}}


def data(**changes):
    return DATA | changes


def cast(**changes):
    return {"cast": {"ana": {"concept": "builtin/ana"} | changes, "bo": {"concept": "bo"}}}


def test_defaults_are_those_of_the_official_code():
    scene = fill_defaults(parse_scene(DATA | {"model": "my-sdxl"}))
    assert (scene.steps, scene.start) == (50, 16 / 50)
    method = scene.method
    assert isinstance(method, TwoStage) and method.own_words_share == method.other_words_share == 0
    assert (method.cross_replace_steps, method.self_replace_steps, method.self_attention_cell_px) == (1.0, 0.4, 32)
    assert method.blend and method.feather_cells == 0


def test_the_built_in_model_has_defaults_of_its_own_and_what_is_given_stays():
    scene = parse_scene(DATA)
    assert (scene.model, scene.start) == ("builtin", None)
    settled = fill_defaults(scene)
    assert (settled.start, settled.method) == (0.12, TwoStage(own_words_share=1.0, other_words_share=1.0))
    assert (settled.lowest_score, settled.steps) == (0.3, STEPS_BY_MODEL["builtin"])
    method = {"name": "two_stage", "own_words_share": 0.25, "other_words_share": 0.5}
    given = parse_scene(DATA | {"start": 0.5, "method": method, "lowest_score": 0.2, "steps": 9})
    assert fill_defaults(given) == given
    assert fill_defaults(parse_scene(DATA | {"method": "multi_lora"})).method == MultiLora()


def test_another_model_brings_its_own_defaults_but_keeps_what_was_chosen():
    settled = fill_defaults(parse_scene(DATA))
    assert fill_defaults(with_settings(settled, ["model=my-sdxl"])).start == 16 / 50
    assert fill_defaults(with_settings(settled, ["model=my-sdxl"])).method == TwoStage(
        own_words_share=0.0, other_words_share=0.0
    )
    chosen = fill_defaults(parse_scene(DATA | {"start": 0.5}))
    assert with_settings(chosen, ["model=my-sdxl"]).start == 0.5
    stricter = fill_defaults(parse_scene(DATA | {"lowest_score": 0.6}))
    assert with_settings(stricter, ["model=my-sdxl"]).lowest_score == 0.6
    assert with_settings(settled, ["seed=4"]).start == 0.12
    assert fill_defaults(with_settings(settled, ["model=my-sdxl"])).steps == 50
    assert with_settings(settled, ["steps=9", "model=my-sdxl"]).steps == 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepz": 3}, "stepz: unknown key; did you mean 'steps' or 'style'? known: cast, checkpoint"),
        (
            cast(wheree="left"),
            "cast.ana.wheree: unknown key; did you mean 'where'? known: allow_missing_layers, class_name, concept",
        ),
        (
            {"method": {"name": "two_stage", "blnd": False}},
            "unknown key; did you mean 'blend'? known: attention_cache, blend",
        ),
        ({"method": "nope"}, "no method 'nope'; known: multi_lora, two_stage"),
        ({"method": {"blend": False}}, "no method None; known: multi_lora, two_stage"),
        (
            {"prompt": "{ana} and {bob}"},
            "slot {bob} but the cast has no such member; did you mean 'bo'? known: ana, bo",
        ),
        (
            {"prompt": "{ana} alone"},
            "cast member 'bo' has 0 slots in the prompt '{ana} alone'; write {bo} there exactly",
        ),
        ({"prompt": "{ana}, {ana} and {bo}"}, "cast member 'ana' has 2 slots"),
        ({"prompt": "nobody", "cast": {}}, "prompt 'nobody' has no slot; write one {name} for each cast member"),
        ({"prompt": "{ana} and {bo"}, "write slots as {name}"),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"steps": 0}, "steps: want at least 1 (got 0)"),
        ({"steps": "many"}, "steps: want a whole number (got 'many')"),
        ({"start": 1.5}, "start: want at most 1.0 (got 1.5)"),
        ({"size": [64, 32]}, "size: height 32: want 64 to 8192 px"),
        ({"seed": -1}, "seed: want a whole number from 0 on (got -1); write random"),
        (cast(where=[0.5, 0.1, 0.2, 0.9]), "the box [0.5, 0.1, 0.2, 0.9] is empty: want left < right and top < bottom"),
        (cast(weight=-1), "cast.ana.weight: want at least 0.0 (got -1)"),
        ({"cast": {"ana": {}, "bo": {"concept": "bo"}}}, "cast.ana.concept: is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_what_is_allowed(changes, said):
    with pytest.raises(SceneError) as caught:
        parse_scene(data(**changes), "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["0", "a.b", "a/b", "a[b]", ""])
def test_a_name_that_is_no_word_is_refused(name):
    with pytest.raises(SceneError):
        parse_scene({"prompt": f"{{{name}}} in a park", "cast": {name: {"concept": "x"}}})


@pytest.mark.parametrize("prompt", ["{ana!z} and {bo}", "{ana:>30} and {bo}", "{ana!r} and {bo}"])
def test_a_slot_is_a_plain_name(prompt):
    with pytest.raises(SceneError):
        parse_scene(data(prompt=prompt))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (cast(prompt="{ana} with a red hat"), "cast.ana.prompt"),
        (cast(negative_prompt="a {bo}"), "cast.ana.negative_prompt"),
        ({"negative_prompt": "{bo}"}, "negative_prompt"),
    ],
)
def test_a_slot_outside_of_the_scenes_prompt_is_refused(changes, field):
    with pytest.raises(SceneError, match=rf"^scene: {field}: has the slot {{(ana|bo)}}, which only the scene's"):
        parse_scene(data(**changes))


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_mapping_is_no_scene(value):
    with pytest.raises(SceneError, match=r"^scene: "):
        parse_scene(value)


def test_a_scene_may_be_yaml_toml_or_json(tmp_path):
    scene = parse_scene(data(seed=5))
    toml = (
        'prompt = "{ana} in front of {bo}"\nseed = 5\n[cast.ana]\nconcept = "builtin/ana"\n[cast.bo]\nconcept = "bo"\n'
    )
    for suffix, text in (("yaml", yaml.safe_dump(data(seed=5))), ("json", json.dumps(data(seed=5))), ("toml", toml)):
        path = tmp_path / f"scene.{suffix}"
        path.write_text(text)
        assert load_scene(path) == scene


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("scene.yaml", b"{", "not valid YAML"),
        ("scene.json", b"{", "not valid JSON"),
        ("scene.toml", b"= 3", "not valid TOML"),
        ("scene.yaml", b"\xff\xfe\xff", "is not UTF-8 text (byte 0xff at position 0); save it as UTF-8"),
        ("scene.yaml", b"[" * 3_000, "not valid YAML"),
        ("scene.json", b"[" * 100_000, "not valid JSON: nested more than 50 deep"),
        ("scene.txt", b"", "a scene is a .yaml, .toml or .json file, or a .png that costars wrote"),
        ("scene.png", b"no picture", "cannot be read as a picture"),
        ("gone.yaml", None, "gone.yaml: no such file or folder ("),
    ],
)
def test_a_file_that_is_no_scene_says_so(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SceneError) as caught:
        load_scene(tmp_path / name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "not json", "{}", "[]", '{"scene": 3}'])
def test_a_picture_that_costars_did_not_write_holds_no_scene(tmp_path, text):
    info = PngInfo()
    if text is not None:
        info.add_text("costars", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png", pnginfo=info)
    with pytest.raises(SceneError, match=r"picture.png: "):
        load_scene(tmp_path / "picture.png")


def test_settings_change_what_they_name_and_nothing_else():
    scene = parse_scene(DATA)
    changed = with_settings(scene, ["seed=3", "cast.ana.weight=0.8", "method.blend=false", "cast.bo.where=[0.2, 0.5]"])
    assert (changed.seed, changed.cast["ana"].weight, changed.cast["bo"].where) == (3, 0.8, (0.2, 0.5))
    assert changed.method == TwoStage(blend=False)
    assert with_settings(changed, ["seed=0", "cast.ana.weight=1", "method=two_stage", "cast.bo.where=null"]) == scene
    assert with_settings(scene, ["method=multi_lora"]).method == MultiLora()
    assert with_settings(scene, []) == scene


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed", "--set seed: want key=value, for example seed=3"),
        ("cats.ana.weight=1", "the scene has no 'cats'; did you mean 'cast'?"),
        ("cast.anna.weight=1", "the scene has no 'anna'; did you mean 'ana'? known: ana, bo"),
        ("stepz=3", "stepz: unknown key; did you mean 'steps' or 'style'?"),
        ("cast.ana.wieght=1", "cast.ana.wieght: unknown key; did you mean 'weight'?"),
        ("seed=[", "seed: want a whole number or random (got '[')"),
        ("steps=0", "steps: want at least 1"),
        ("seed.x=1", "'seed' has no parts; set it as a whole, seed=..."),
        ("nobody.x=1", "the scene has no 'nobody'"),
        ("=3", "want key=value"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting, said):
    with pytest.raises(SceneError) as caught:
        with_settings(parse_scene(DATA), [setting])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@given(
    st.builds(
        CastMember,
        concept=st.just("x"),
        weight=st.floats(0, 4),
        where=st.one_of(st.none(), st.sampled_from(["left", "m.png"]), st.tuples(st.floats(0, 1), st.floats(0, 1))),
        depth=st.none() | st.integers(0, 5),
    ),
    st.sampled_from([TwoStage(), TwoStage(blend=False, feather_cells=1.5), MultiLora()]),
    st.integers(0, 2**63 - 1),
)
def test_a_scene_written_out_and_read_again_is_the_same(member, method, seed):
    scene = parse_scene(
        {"prompt": "{a}", "cast": {"a": member.model_dump()}, "method": method.model_dump(), "seed": seed}
    )
    assert parse_scene(json.loads(scene.model_dump_json())) == scene
    assert parse_scene(yaml.safe_load(yaml.safe_dump(scene.model_dump(mode="json")))) == scene


def test_hints_put_the_near_first_and_always_name_the_known():
    assert nearest("anna", ["bo", "ana"]) == "did you mean 'ana'? known: ana, bo"
    assert nearest("x", []) == "known: none"


@pytest.mark.parametrize("where", [[10, 20], [0.1, 0.2, 0.3], [0.5, "x"], 3, {"x": 1}])
def test_a_place_that_is_none_is_refused_in_plain_words(make_scene, where):
    with pytest.raises(
        SceneError, match=r"cast.a.where: .* is not a place; use left, right, a point \[x, y\]"
    ) as caught:
        make_scene(cast={"a": {"concept": "a", "where": where}, "b": {"concept": "b"}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [1, 2], "text"])
def test_a_file_without_keys_is_refused_in_plain_words(data):
    with pytest.raises(SceneError, match="a scene needs at least prompt and cast"):
        parse_scene(data)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_lora_in_a_prompt_is_refused_with_what_to_write(field):
    data = dict(DATA)
    data[field] = data.get(field, "") + " <lora:my friend:0.7>"
    with pytest.raises(
        SceneError, match=r"cast\.NAME\.concept: my friend and cast.NAME.weight: 0.7, for a style write"
    ):
        parse_scene(data)


@pytest.mark.parametrize("written", ["<lora:ana:0.7>", "<LoRA:ana>"])
def test_a_lora_in_a_trigger_is_refused_however_it_is_written(written):
    cast = DATA["cast"] | {"ana": {"concept": "ana", "trigger": f"ohwx {written}"}}
    with pytest.raises(SceneError, match=r"cast\.NAME\.concept: ana and"):
        parse_scene(DATA | {"cast": cast})


def test_several_pictures_are_scenes_with_seeds_that_follow_one_another():
    scene = parse_scene(DATA | {"count": 3, "seed": 7})
    assert [s.seed for s in scene.each()] == [7, 8, 9]
    assert scene.each()[1] == parse_scene(DATA | {"seed": 8})


def test_a_segmenter_by_phrase_has_options_and_a_threshold_of_its_own():
    data = DATA | {"segmenter": {"name": "grounded_sam", "box_threshold": 0.4}}
    scene = fill_defaults(parse_scene(data))
    assert (scene.segmenter.box_threshold, scene.lowest_score) == (0.4, 0.0)
    assert parse_scene(DATA | {"segmenter": "clipseg"}).segmenter.name == "clipseg"


@pytest.mark.parametrize(
    ("segmenter", "said"),
    [
        ("grounded", "no segmenter 'grounded'; did you mean 'grounded_sam'"),
        ({"name": "owl_sam", "template": "a photo"}, "template"),
        ({"name": "clipseg", "treshold": 0.2}, "did you mean 'threshold'"),
    ],
)
def test_a_segmenter_that_cannot_be_is_refused(segmenter, said):
    with pytest.raises(SceneError) as caught:
        parse_scene(DATA | {"segmenter": segmenter})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_phrase_that_nobody_reads_is_refused():
    cast = {"ana": {"concept": "builtin/ana", "segment_phrase": "red hair"}, "bo": {"concept": "builtin/bo"}}
    with pytest.raises(SceneError, match=r"cast\.ana\.segment_phrase is used by the segmenters"):
        parse_scene(DATA | {"cast": cast})
    assert parse_scene(DATA | {"cast": cast, "segmenter": "owl_sam"}).cast["ana"].segment_phrase == "red hair"


def test_a_concept_alone_may_stand_for_a_style():
    scene = {"prompt": "{ana} in a park", "cast": {"ana": "builtin/ana"}}
    assert parse_scene(scene | {"style": "ink"}).style == parse_scene(scene | {"style": {"concept": "ink"}}).style
    assert parse_scene(scene).style is None


def test_a_concept_alone_may_stand_for_a_member():
    short = parse_scene({"prompt": "{ana} and {bo}", "cast": {"ana": "builtin/ana", "bo": {"concept": "bo"}}})
    assert short.cast["ana"].concept == "builtin/ana"


def test_a_long_value_is_not_told_whole():
    with pytest.raises(SceneError) as caught:
        parse_scene(DATA | {"steps": "x" * 5000})
    assert len(str(caught.value)) < 300


def test_a_record_of_a_run_is_no_scene():
    with pytest.raises(SceneError, match=r"result.json: is the record of a run, not a scene; use its folder or its"):
        parse_scene({"scene": DATA, "seed": 0}, "result.json")


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("prompt={ana} behind {bo} in the snow", "prompt", "{ana} behind {bo} in the snow"),
        ("prompt={ana} and {bo}", "prompt", "{ana} and {bo}"),
        ("negative_prompt=", "negative_prompt", ""),
        ("negative_prompt=3", "negative_prompt", "3"),
    ],
)
def test_text_is_set_as_it_is_written(setting, key, value):
    assert getattr(with_settings(parse_scene(DATA), [setting]), key) == value


def test_a_size_beyond_all_measure_is_refused():
    with pytest.raises(SceneError, match="size: width 100000: want 64 to 8192 px"):
        parse_scene(DATA | {"size": [100_000, 100_000]})


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("cast.ana.where=[0.3, 0.5]", "where", (0.3, 0.5)),
        ("cast.ana.where=null", "where", None),
        ("cast.ana.class_name=null", "class_name", None),
    ],
)
def test_what_is_no_text_takes_the_place_of_text(setting, key, value):
    scene = parse_scene(DATA | {"cast": {"ana": {"concept": "a", "where": "left", "class_name": "elf"}, "bo": "bo"}})
    assert getattr(with_settings(scene, [setting]).cast["ana"], key) == value


def test_another_segmenter_brings_its_own_threshold():
    settled = fill_defaults(parse_scene(DATA))
    assert fill_defaults(with_settings(settled, ["segmenter=owl_sam"])).lowest_score == 0.0


def test_a_control_that_never_acts_is_refused():
    with pytest.raises(SceneError, match=r"start 0\.8 is not before end 0\.2, so it would never act"):
        parse_scene(DATA | {"controls": [{"model": "m", "image": "i", "start": 0.8, "end": 0.2}]})


@pytest.mark.parametrize(
    "text", ["<lora:" * 3_000, "<lora:" + "a" * 15_000, "<lora:a" + ":b" * 7_000, "<lora:a:" * 2_000]
)
def test_time_to_look_for_loras_is_linear(make_scene, text):
    began = time.process_time()
    make_scene(negative_prompt=text)
    assert time.process_time() - began < 1


def test_prompt_of_any_length_is_refused_at_once(make_scene):
    with pytest.raises(SceneError, match="prompt of 30000 characters, at most 20000 are read; shorten it"):
        make_scene(negative_prompt="a" * 30_000)


def test_a_cast_of_thousands_is_checked_in_linear_time(make_scene):
    names = [f"a{i}" for i in range(2_000)]
    began = time.process_time()
    make_scene(prompt=" ".join(f"{{{name}}}" for name in names), cast=dict.fromkeys(names, "char_a"))
    assert time.process_time() - began < 3


@pytest.mark.parametrize("changes", [{"model": "~nobody-here/m"}, {"cast": {"a": "~nobody-here/a.safetensors"}}])
def test_home_of_an_unknown_user_is_refused(make_scene, tmp_path, changes):
    changes = changes | ({"prompt": "{a}"} if "cast" in changes else {})
    with pytest.raises(SceneError, match="no such user's home folder"):
        anchor_paths(make_scene(**changes), tmp_path)


def test_file_name_that_is_not_utf8_cannot_be_stored(make_scene, tmp_path):
    scene = make_scene(cast={"a": {"concept": "a.safetensors"}}, prompt="{a}")
    folder = tmp_path / "caf\udce9"
    with pytest.raises(SceneError, match="is not valid Unicode; rename the file or folder: scenes are stored as UTF-8"):
        anchor_paths(scene, folder)


@pytest.mark.parametrize(("size", "read"), [("1024x768", (1024, 768)), (" 64 X 96 px", (64, 96)), ([64, 96], (64, 96))])
def test_a_size_is_read_as_people_write_it(size, read):
    assert parse_scene(DATA | {"size": size}).size == read


@pytest.mark.parametrize("size", [100, "100", "big", [1, 2, 3], [64.5, 64], {"width": 64}, "64x"])
def test_a_size_that_is_none_is_refused_with_the_right_form(size):
    with pytest.raises(
        SceneError, match=r"size: want width and height in px, such as \[1024, 768\] or 1024x768 \(got "
    ):
        parse_scene(DATA | {"size": size})


def test_a_random_seed_is_another_each_time_and_stays_with_the_scene():
    scenes = [parse_scene(DATA | {"seed": "random"}) for _ in range(3)]
    assert len({scene.seed for scene in scenes}) == 3 and all(0 <= scene.seed < 2**32 for scene in scenes)
    assert parse_scene(scenes[0].model_dump(mode="json")) == scenes[0]
    assert with_settings(scenes[0], ["steps=8"]).seed == scenes[0].seed


WRONG = (None, "", "x", -7, 1e9, 2.5, True, [], ["x"], {}, {"x": 1}, float("nan"))
FIELDS = [(), ("cast",), ("cast", "ana"), ("method",), ("checkpoint",), ("style",), ("controls", 0), ("segmenter",)]
FULL = fill_defaults(parse_scene(DATA | {"style": "ink", "controls": [{"model": "m", "image": "i"}], "size": [64, 64]}))


@pytest.mark.parametrize("place", FIELDS, ids=str)
def test_no_wrong_value_is_answered_in_the_words_of_a_library(place):
    plain = FULL.model_dump(mode="json") | {"segmenter": {"name": "owl_sam", "template": "{}"}}
    here = plain
    for key in place:
        here = here[key]
    for key in [*here, "unknown"]:
        before = here.get(key)
        for value in WRONG:
            here[key] = value
            try:
                parse_scene(plain, "mine.yaml")
            except SceneError as error:
                line = str(error)
                assert line.startswith("mine.yaml: ") and "\n" not in line
                for words in ("Input should", "valid", "String", "pydantic", "validation error", "should be"):
                    assert words not in line.replace("invalid", ""), line
        here[key] = before
        if before is None:
            del here[key]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Scene(**DATA, size=(100,)), "scene: size: want width and height in px"),
        (lambda: Scene(**DATA, stepz=3), "scene: stepz: unknown key; did you mean 'steps'"),
        (lambda: Scene(prompt="{a}", cast={"b": "x"}), "scene: prompt has the slot {a} but the cast has no such"),
        (Scene, "scene: prompt: is missing; cast: is missing"),
        (lambda: CastMember(concept="x", weight="heavy"), "castmember: weight: want a number (got 'heavy')"),
        (lambda: TwoStage(overlap="back"), "twostage: overlap: want 'front' or 'sum' (got 'back')"),
    ],
)
def test_python_calls_are_answered_in_the_same_words(make, said):
    with pytest.raises(SceneError) as caught:
        make()
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_settings_name_files_beside_the_working_folder_and_scene_files_those_beside_them(tmp_path, monkeypatch):
    for folder in ("scenes", "work"):
        (tmp_path / folder).mkdir()
        for name in ("ana.safetensors", "bo.safetensors", "left.png"):
            (tmp_path / folder / name).touch()
        (tmp_path / folder / "my-model").mkdir()
    cast = {"ana": {"concept": "ana.safetensors", "where": "left.png"}, "bo": {"concept": "bo.safetensors"}}
    (tmp_path / "scenes" / "scene.yaml").write_text(yaml.safe_dump(DATA | {"cast": cast, "model": "my-model"}))
    monkeypatch.chdir(tmp_path / "work")
    scene = load_scene(tmp_path / "scenes" / "scene.yaml")
    changed = with_settings(scene, ["cast.bo.concept=bo.safetensors", "seed=2"])
    assert changed.model == str(tmp_path / "scenes" / "my-model")
    assert changed.cast["ana"].concept == str(tmp_path / "scenes" / "ana.safetensors")
    assert changed.cast["ana"].where == str(tmp_path / "scenes" / "left.png")
    assert changed.cast["bo"].concept == str(tmp_path / "work" / "bo.safetensors")
    assert with_settings(scene, ["model=my-model"]).model == str(tmp_path / "work" / "my-model")


@pytest.mark.parametrize("model", ["gone", "./gone/model", "a/b/c"])
def test_a_model_that_can_only_be_a_path_is_named_in_full(tmp_path, model):
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(DATA | {"model": model}))
    assert load_scene(tmp_path / "scene.yaml").model == str(tmp_path / model)


def test_a_hub_id_stays_as_it_is(tmp_path):
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(DATA | {"model": "org/name@fp16"}))
    assert load_scene(str(tmp_path / "scene.yaml")) == load_scene(tmp_path / "scene.yaml")
    assert load_scene(tmp_path / "scene.yaml").model == "org/name@fp16"


def test_a_folder_that_is_missing_or_no_scene_is_told_apart(tmp_path):
    with pytest.raises(SceneError, match=r"gone: no such file or folder \(/.*/gone\); check the path"):
        load_scene(tmp_path / "gone")
    with pytest.raises(SceneError, match=r"is a folder; a scene is a file"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"steps": True}, {"start": True}, {"seed": False}, {"guidance_scale": True}, {"cast": {"ana": {"weight": True}}}],
)
def test_a_switch_is_no_number(changes):
    changes = (
        {"cast": {"ana": DATA["cast"]["ana"] | changes["cast"]["ana"], "bo": "bo"}} if "cast" in changes else changes
    )
    with pytest.raises(SceneError, match=r"(true|false) is a switch \(yes, no, on and off too\); want a value"):
        parse_scene(DATA | changes)
    assert parse_scene(DATA | {"method": {"name": "two_stage", "blend": False}}).method.blend is False


def test_a_place_of_switches_is_refused():
    with pytest.raises(SceneError, match="is not a place"):
        parse_scene(DATA | {"cast": {"ana": {"concept": "a", "where": [True, False]}, "bo": "bo"}})


def test_random_seed_of_other_programs_is_named():
    with pytest.raises(SceneError, match="write random for a seed that is chosen at random"):
        parse_scene(DATA | {"seed": -1})
