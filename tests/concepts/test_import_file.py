"""Imported concepts change the weights as their file did; a failed import changes nothing."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from costars.concepts import saving
from costars.concepts.import_file import ImportOptions, import_concept
from costars.concepts.load import load_concept, read_card
from costars.errors import ConceptError

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture
def kohya(write, random):
    """Write a kohya LoRA of two layers whose alpha / rank is not a power of two."""

    def write_lora(name="mine", **metadata):
        tensors = {
            f"{LAYER}.lora_down.weight": random(3, 6).half(),
            f"{LAYER}.lora_up.weight": random(5, 3).half(),
            f"{LAYER}.alpha": torch.tensor(1.0),
            f"{CONV}.lora_down.weight": 1e6 * random(2, 4, 3, 3).bfloat16(),
            f"{CONV}.lora_up.weight": random(5, 2, 1, 1).bfloat16(),
            f"{CONV}.alpha": torch.tensor(1.0),
        }
        return write(tensors, name, **metadata)

    return write_lora


@pytest.fixture
def library(tmp_path):
    """The library folder, not created yet."""
    return tmp_path / "deep" / "library"


def test_imported_concept_has_the_same_weight_changes(kohya, library):
    source = load_concept(kohya(), "mine", "mine")
    made = import_concept(
        kohya(), library, ImportOptions(name="ana", class_name="woman", trigger="zxa", licence="CC0-1.0")
    )
    concept = made.concept
    assert made.path == library / "ana.safetensors" and list(library.iterdir()) == [made.path]
    assert set(concept.adapter) == set(source.adapter)
    for path, entry in source.adapter.items():
        assert torch.equal(entry.down, concept.adapter[path].down)
        assert torch.equal(entry.up, concept.adapter[path].up)
    facts = (concept.name, concept.class_name, concept.trigger, concept.licence, concept.family)
    assert facts == ("ana", "woman", "zxa", "CC0-1.0", "")  # the family is unknown


def test_card_keeps_the_origin_on_a_second_import(kohya, library, tmp_path):
    path = kohya(**{"ss_base_model_version": "sdxl_base_v1-0"})
    made = import_concept(path, library, ImportOptions(class_name="woman"))
    card = read_card(made.path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["imported"] == {"file": "mine.safetensors", "format": "kohya", "sha256": sha256}
    again = import_concept(made.path, library, ImportOptions(trigger="zxb", overwrite=True))
    assert read_card(again.path) == card | {"trigger": "zxb"}
    assert str(tmp_path) not in json.dumps(card)


def test_options_override_the_card_and_the_rest_is_kept(write, random, library):
    stem = "unet.mid_block.attentions.0.proj_in"
    card = {"class_name": "man", "trigger": "bo", "family": "sdxl", "recipe": {"rank": 8}, "base_model": "builtin"}
    tensors = {f"{stem}.lora_A.weight": random(2, 6), f"{stem}.lora_B.weight": random(5, 2)}
    made = import_concept(write(tensors, costars=json.dumps(card)), library, ImportOptions(class_name="boy"))
    card = read_card(made.path)
    assert (card["class_name"], card["trigger"], card["recipe"], card["base_model"]) == (
        "boy",
        "bo",
        {"rank": 8},
        "builtin",
    )


def test_single_stated_trigger_is_used(kohya, library, tmp_path):
    (tmp_path / "mine.civitai.info").write_text(json.dumps({"trainedWords": ["zxa"]}))
    made = import_concept(kohya(**{"modelspec.license": "CC0"}), library, ImportOptions())
    assert (made.concept.trigger, made.concept.licence, made.hints) == ("zxa", "CC0", ())


def test_several_stated_triggers_are_only_hints(kohya, library, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"activation text": "zxa, hat"}))
    tags = json.dumps({"a": {"zxa": 9, "park": 3}})
    made = import_concept(kohya(ss_tag_frequency=tags), library, ImportOptions())
    assert (made.concept.trigger, made.hints) == ("", ("zxa", "hat", "park"))
    assert import_concept(kohya(ss_tag_frequency=tags), library, ImportOptions(name="b", trigger="zxa")).hints == ()


def test_frequent_tag_is_only_a_hint(kohya, library):
    made = import_concept(kohya(ss_tag_frequency=json.dumps({"a": {"zxa": 9}})), library, ImportOptions())
    assert (made.concept.trigger, made.hints) == ("", ("zxa",))


def test_token_of_a_textual_inversion_can_be_renamed(write, random, library):
    path = write({"clip_l": random(2, 768), "clip_g": random(2, 1280)})
    made = import_concept(path, library, ImportOptions(name="ana", trigger="<zxa>"))
    (parts,) = made.concept.tokens.values()
    assert (made.concept.trigger, list(made.concept.tokens)) == ("<zxa>", ["<zxa>"])
    assert torch.equal(parts["text_encoder"], load_file(path)["clip_l"])
    assert torch.equal(parts["text_encoder_2"], load_file(path)["clip_g"])
    assert import_concept(path, library, ImportOptions(name="bo")).concept.trigger == "mine"


@pytest.mark.parametrize("trigger", ["<a> <c>", "zxa"])
def test_several_tokens_cannot_be_renamed(write, random, library, trigger):
    path = write({"<a>": random(2, 768), "<b>": random(2, 768)})
    with pytest.raises(ConceptError, match=r"--trigger .*: must contain the learned tokens '<a> <b>'"):
        import_concept(path, library, ImportOptions(trigger=trigger))
    assert import_concept(path, library, ImportOptions(trigger="<b> and <a>")).concept.trigger == "<b> and <a>"


@pytest.mark.parametrize(
    "name", ["", "../mine", "a/b", "a\\b", "/mine", "..", ".mine", "-mine", "a\nb", "x.safetensors", "a" * 101, "a:b"]
)
def test_invalid_name_is_rejected(kohya, library, name):
    with pytest.raises(ConceptError, match=r"^--name .*: a name has letters of any language.*; use --name [\w-]+$"):
        import_concept(kohya(), library, ImportOptions(name=name))
    assert not library.exists()


@pytest.mark.parametrize("name", ["mine", "2b", "ünï_côde-3", "अनु"])
def test_names_of_any_language_are_valid(kohya, library, name):
    assert import_concept(kohya(), library, ImportOptions(name=name)).path == library / f"{name}.safetensors"


def test_a_file_name_that_is_no_name_comes_with_a_suggestion(kohya, library):
    path = kohya()
    path = path.rename(path.with_name("Ana (v1.2) [final].safetensors"))
    with pytest.raises(ConceptError, match=r"^--name 'Ana \(v1.2\) \[final\]': .*; use --name Ana__v1_2___final$"):
        import_concept(path, library, ImportOptions())
    assert import_concept(path, library, ImportOptions(name="Ana__v1_2___final")).concept.name == "Ana__v1_2___final"


def test_a_trigger_is_kept_as_it_would_be_written_in_a_prompt(write, random, kohya, library):
    options = ImportOptions(trigger=r"saber \(fate\)")
    assert import_concept(kohya(), library, options).concept.trigger == r"saber \(fate\)"
    path = write({"<a>": random(2, 768)})
    renamed = import_concept(path, library, ImportOptions(name="weighted", trigger="(<b>:1.2)")).concept
    assert renamed.trigger == "(<b>:1.2)" and list(renamed.tokens) == ["<b>"]
    bracketed = import_concept(path, library, ImportOptions(name="bracketed", trigger=r"b\(x\)")).concept
    assert bracketed.trigger == r"b\(x\)" and list(bracketed.tokens) == ["b(x)"]


def test_a_class_or_trigger_that_a_scene_would_refuse_is_rejected(kohya, library):
    for options, message in (
        ({"class_name": " "}, "--class ' ' is blank; write a word"),
        ({"trigger": "{ana}"}, "--trigger '{ana}' has a brace, which stands for a slot"),
        ({"trigger": "<lora:ana:1> ana"}, "--trigger '<lora:ana:1> ana': '<lora:ana:1>' (a network or command"),
    ):
        with pytest.raises(ConceptError) as caught:
            import_concept(kohya(), library, ImportOptions(**options))
        assert str(caught.value).startswith(message) and not library.exists()


def test_existing_concept_is_replaced_only_with_overwrite(kohya, library):
    first = import_concept(kohya(), library, ImportOptions(class_name="man")).path.read_bytes()
    with pytest.raises(
        ConceptError, match="'mine' is already in your library; choose another --name, or use --replace"
    ):
        import_concept(kohya(), library, ImportOptions(class_name="woman"))
    assert (library / "mine.safetensors").read_bytes() == first
    options = ImportOptions(class_name="woman", overwrite=True)
    assert import_concept(kohya(), library, options).concept.class_name == "woman"


@pytest.mark.parametrize("field", ["class_name", "trigger", "licence"])
@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "a" * 501])
def test_text_that_cannot_be_in_a_prompt_is_rejected(kohya, library, field, value):
    message = f"invalid {field} .* in its card, expected|^--(class|trigger) .* (has a line break|has 501 characters)"
    with pytest.raises(ConceptError, match=message) as caught:
        import_concept(kohya(), library, ImportOptions(**{field: value}))
    assert "\n" not in str(caught.value) and not library.exists()


def test_unsupported_file_is_not_imported(write, random, library):
    with pytest.raises(ConceptError, match=r"mine.safetensors: is an OFT of an old version"):
        import_concept(write({f"{LAYER}.oft_diag": random(2, 2)}), library, ImportOptions())
    assert not library.exists()


def test_missing_file_is_rejected(library, tmp_path):
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such file"):
        import_concept(tmp_path / "gone.safetensors", library, ImportOptions())


def test_interrupted_import_leaves_the_library_unchanged(kohya, library, monkeypatch):
    before = import_concept(kohya(), library, ImportOptions()).path.read_bytes()

    def interrupt(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "save_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_concept(kohya(), library, ImportOptions(class_name="woman", overwrite=True))
    assert [(p.name, p.read_bytes()) for p in library.iterdir()] == [("mine.safetensors", before)]


def test_library_that_is_a_file_is_not_a_taken_name(kohya, tmp_path):
    (tmp_path / "library").touch()
    with pytest.raises(OSError, match=r"Not a directory: '.*/mine.safetensors'"):
        import_concept(kohya(), tmp_path / "library", ImportOptions())
