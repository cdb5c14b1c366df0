"""Into the library: the same change of weight under a card of ours, or nothing at all."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from costars.concepts import saving
from costars.concepts.import_file import Naming, import_concept
from costars.concepts.load import load_concept, read_card
from costars.errors import ConceptError

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture
def kohya(write, random):
    """A LoRA of two layers as kohya writes it, with an alpha that is no power of two over the rank."""

    def of(name="mine", **metadata):
        tensors = {
            f"{LAYER}.lora_down.weight": random(3, 6).half(),
            f"{LAYER}.lora_up.weight": random(5, 3).half(),
            f"{LAYER}.alpha": torch.tensor(1.0),
            f"{CONV}.lora_down.weight": 1e6 * random(2, 4, 3, 3).bfloat16(),
            f"{CONV}.lora_up.weight": random(5, 2, 1, 1).bfloat16(),
            f"{CONV}.alpha": torch.tensor(1.0),
        }
        return write(tensors, name, **metadata)

    return of


@pytest.fixture
def mine(tmp_path):
    """The library, not there yet."""
    return tmp_path / "deep" / "library"


def test_the_imported_concept_changes_every_weight_as_the_file_did(kohya, mine):
    source = load_concept(kohya(), "mine", "mine")
    made = import_concept(kohya(), mine, Naming("ana", "woman", "zxa", "CC0-1.0"))
    concept = made.concept
    assert made.path == mine / "ana.safetensors" and list(mine.iterdir()) == [made.path]
    assert set(concept.adapter) == set(source.adapter)
    for path, entry in source.adapter.items():
        assert torch.equal(entry.down, concept.adapter[path].down)
        assert torch.equal(entry.up, concept.adapter[path].up)
    said = (concept.name, concept.class_name, concept.trigger, concept.licence, concept.family)
    assert said == ("ana", "woman", "zxa", "CC0-1.0", "")  # the file does not tell its family


def test_numbers_are_kept_in_the_smallest_format_that_holds_them(kohya, mine):
    import_concept(kohya(), mine, Naming())
    kinds = {key: tensor.dtype for key, tensor in load_file(mine / "mine.safetensors").items()}
    layer, conv = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "unet.down_blocks.0.resnets.0.conv1"
    assert kinds[f"{layer}.lora_A.weight"] is torch.float16
    assert kinds[f"{layer}.lora_B.weight"] is torch.float32  # a third of what was in half precision
    assert kinds[f"{conv}.lora_A.weight"] is torch.bfloat16


@pytest.mark.parametrize(("alpha", "rank"), [(1, 4), (1, 128), (16, 4), (0.25, 64)])
def test_an_alpha_that_makes_half_precision_too_small_costs_no_space(write, random, mine, alpha, rank):
    """Small numbers times alpha / rank fall below what float16 can tell apart."""
    factors = {"lora_down.weight": random(rank, 6).half(), "lora_up.weight": (random(5, rank) / 1000).half()}
    tensors = {f"{LAYER}.{name}": t for name, t in factors.items()} | {f"{LAYER}.alpha": torch.tensor(float(alpha))}
    made = import_concept(write(tensors), mine, Naming())
    (entry,) = made.concept.adapter.values()
    assert torch.equal(entry.up, factors["lora_up.weight"].float() * alpha / rank)
    held = load_file(made.path)
    assert {t.dtype for key, t in held.items() if not key.endswith(".alpha")} == {torch.float16}


def test_the_card_tells_where_it_is_from_and_importing_again_keeps_that(kohya, mine, tmp_path):
    path = kohya(**{"ss_base_model_version": "sdxl_base_v1-0"})
    made = import_concept(path, mine, Naming(class_name="woman"))
    card = read_card(made.path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["imported"] == {"file": "mine.safetensors", "format": "kohya", "sha256": sha256}
    again = import_concept(made.path, mine, Naming(trigger="zxb"), replaced=True)
    assert read_card(again.path) == card | {"trigger": "zxb"}
    assert str(tmp_path) not in json.dumps(card)


def test_a_card_of_ours_is_kept_but_for_what_is_said_anew(write, random, mine):
    stem = "unet.mid_block.attentions.0.proj_in"
    card = {"class_name": "man", "trigger": "bo", "family": "sdxl", "recipe": {"rank": 8}, "base_model": "builtin"}
    tensors = {f"{stem}.lora_A.weight": random(2, 6), f"{stem}.lora_B.weight": random(5, 2)}
    made = import_concept(write(tensors, costars=json.dumps(card)), mine, Naming(class_name="boy"))
    kept = read_card(made.path)
    assert (kept["class_name"], kept["trigger"], kept["recipe"], kept["base_model"]) == (
        "boy",
        "bo",
        {"rank": 8},
        "builtin",
    )


def test_the_only_trigger_that_the_author_gives_is_taken(kohya, mine, tmp_path):
    (tmp_path / "mine.civitai.info").write_text(json.dumps({"trainedWords": ["zxa"]}))
    made = import_concept(kohya(**{"modelspec.license": "CC0"}), mine, Naming())
    assert (made.concept.trigger, made.concept.licence, made.hints) == ("zxa", "CC0", ())


def test_of_several_triggers_none_is_taken_and_all_are_told(kohya, mine, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"activation text": "zxa, hat"}))
    tags = json.dumps({"a": {"zxa": 9, "park": 3}})
    made = import_concept(kohya(ss_tag_frequency=tags), mine, Naming())
    assert (made.concept.trigger, made.hints) == ("", ("zxa", "hat", "park"))
    assert import_concept(kohya(ss_tag_frequency=tags), mine, Naming("b", trigger="zxa")).hints == ()


def test_a_frequent_tag_alone_is_never_taken(kohya, mine):
    made = import_concept(kohya(ss_tag_frequency=json.dumps({"a": {"zxa": 9}})), mine, Naming())
    assert (made.concept.trigger, made.hints) == ("", ("zxa",))


def test_the_word_of_a_textual_inversion_may_be_chosen(write, random, mine):
    path = write({"clip_l": random(2, 768), "clip_g": random(2, 1280)})
    made = import_concept(path, mine, Naming("ana", trigger="<zxa>"))
    (parts,) = made.concept.tokens.values()
    assert (made.concept.trigger, list(made.concept.tokens)) == ("<zxa>", ["<zxa>"])
    assert torch.equal(parts["text_encoder"], load_file(path)["clip_l"])
    assert torch.equal(parts["text_encoder_2"], load_file(path)["clip_g"])
    assert import_concept(path, mine, Naming("bo")).concept.trigger == "mine"


@pytest.mark.parametrize("trigger", ["<a> <c>", "zxa"])
def test_the_words_of_several_are_not_renamed(write, random, mine, trigger):
    path = write({"<a>": random(2, 768), "<b>": random(2, 768)})
    with pytest.raises(ConceptError, match=r"--trigger .*: want the words that were taught in it, '<a> <b>'"):
        import_concept(path, mine, Naming(trigger=trigger))
    assert import_concept(path, mine, Naming(trigger="<b> and <a>")).concept.trigger == "<b> and <a>"


@pytest.mark.parametrize(
    "name", ["", "../mine", "a/b", "a\\b", "/mine", "..", ".mine", "-mine", "a\nb", "x.safetensors", "a" * 101, "a:b"]
)
def test_a_name_that_is_no_plain_name_is_refused(kohya, mine, name):
    with pytest.raises(ConceptError, match=r"^--name .*: is no plain name; want letters, digits"):
        import_concept(kohya(), mine, Naming(name))
    assert not mine.exists()


@pytest.mark.parametrize("name", ["mine", "Ana (v1.2) [final]", "ünï_côde-3"])
def test_plain_names_are_those_that_files_have(kohya, mine, name):
    assert import_concept(kohya(), mine, Naming(name)).path == mine / f"{name}.safetensors"


def test_a_name_that_is_there_is_refused_and_kept_unless_it_is_to_be_replaced(kohya, mine):
    first = import_concept(kohya(), mine, Naming(class_name="man")).path.read_bytes()
    with pytest.raises(ConceptError, match="'mine' is in your library already; give another --name, or --replace it"):
        import_concept(kohya(), mine, Naming(class_name="woman"))
    assert (mine / "mine.safetensors").read_bytes() == first
    assert import_concept(kohya(), mine, Naming(class_name="woman"), replaced=True).concept.class_name == "woman"


@pytest.mark.parametrize("field", ["class_name", "trigger", "licence"])
@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "a" * 501])
def test_what_cannot_stand_in_a_prompt_is_refused(kohya, mine, field, value):
    with pytest.raises(ConceptError, match=f"its card's {field} .* is no line of text") as caught:
        import_concept(kohya(), mine, Naming(**{field: value}))
    assert "\n" not in str(caught.value) and not mine.exists()


def test_a_file_that_cannot_be_applied_is_not_imported(write, random, mine):
    with pytest.raises(ConceptError, match=r"mine.safetensors: is a LoKr"):
        import_concept(write({f"{LAYER}.lokr_w1": random(2, 2)}), mine, Naming())
    assert not mine.exists()


def test_a_missing_file_is_said(mine, tmp_path):
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such file"):
        import_concept(tmp_path / "gone.safetensors", mine, Naming())


def test_an_import_that_is_broken_off_leaves_the_library_as_it_was(kohya, mine, monkeypatch):
    before = import_concept(kohya(), mine, Naming()).path.read_bytes()

    def cut_off(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        import_concept(kohya(), mine, Naming(class_name="woman"), replaced=True)
    assert [(p.name, p.read_bytes()) for p in mine.iterdir()] == [("mine.safetensors", before)]
