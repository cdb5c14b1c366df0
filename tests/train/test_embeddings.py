"""New words in captions: read where they stand, as a scene reads them, with gradients for them alone."""

import pytest
import torch

from costars.errors import TrainError
from costars.model.prompt_weighting import escape_brackets
from costars.train.embeddings import initial_embeddings, tokenize_captions
from costars.train.trainable import make_trainable

CAPTIONS = ("photo of a <mia> woman, and <mia>", "a <rex> dog and a <mia> woman", "a dog")
COUNTS = {"<mia>": 2, "<rex>": 2}


@pytest.fixture
def vectors(tiny):
    """Two vectors of each word for each text encoder, for three layers."""
    generator = torch.Generator().manual_seed(0)
    width = {e.name: e.module.config.hidden_size for e in tiny.encoders}

    def of(layers=1):
        return {
            word: {n: torch.nn.Parameter(torch.randn(layers, 2, w, generator=generator)) for n, w in width.items()}
            for word in COUNTS
        }

    return of


@pytest.mark.parametrize("layers", [1, 3])
def test_captions_are_encoded_as_a_scene_encodes_them(tiny, vectors, layers):
    learned = vectors(layers)
    read = tokenize_captions(tiny.encoders, CAPTIONS, COUNTS, layers)
    tokens, pooled = read.features(tiny.encoders, [1, 0, 2], learned)
    assert tokens.shape == (3, layers * 77, 64)
    for row, caption in enumerate((CAPTIONS[1], CAPTIONS[0], CAPTIONS[2])):
        text = tiny.encode_text(caption, learned=learned)
        assert torch.allclose(tokens[row].unflatten(0, (layers, 77)), text.tokens, atol=1e-5)
        assert torch.allclose(pooled[row], text.pooled[0], atol=1e-5)


def test_one_encoder_has_nothing_pooled(small15):
    read = tokenize_captions(small15.encoders, ["a dog"], {})
    tokens, pooled = read.features(small15.encoders, [0], {})
    assert pooled is None and torch.allclose(tokens, small15.encode_text("a dog").tokens, atol=1e-5)


def test_gradients_reach_the_words_that_are_said_and_no_other(tiny, vectors, trace):
    learned, before = vectors(), [trace(e.module) for e in tiny.encoders]
    read = tokenize_captions(tiny.encoders, CAPTIONS, COUNTS)
    tokens, pooled = read.features(tiny.encoders, [0], learned)
    (tokens.square().sum() + pooled.square().sum()).backward()
    assert all((p.grad.abs().sum(dim=-1) > 0).all() for p in learned["<mia>"].values())
    assert all(p.grad is None or not p.grad.any() for p in learned["<rex>"].values())
    assert [trace(e.module) for e in tiny.encoders] == before
    assert all(p.grad is None for e in tiny.encoders for p in e.module.parameters())


def test_words_stand_where_they_are_said(tiny):
    read = tokenize_captions(tiny.encoders, CAPTIONS, COUNTS)
    ids = read.read[0][0].ids[0].tolist()
    start, end = tiny.encoders[0].tokenizer.bos_token_id, tiny.encoders[0].tokenizer.eos_token_id
    (first, second, third, fourth), last = read.columns(0, "<mia>"), ids.index(end)
    assert ids[0] == start and (second, fourth) == (first + 1, third + 1) and fourth == last - 1
    assert read.columns(0, "<rex>") == () == read.columns(2, "<mia>")
    assert min(read.columns(1, "<mia>")) > max(read.columns(1, "<rex>"))


def test_brackets_mean_brackets(tiny):
    caption = r"a woman (red hair:1.5) [left] \ there"
    read = tokenize_captions(tiny.encoders, [caption], {})
    tokens, _ = read.features(tiny.encoders, [0], {})
    plain = tiny.encoders[0].tokenizer(caption).input_ids
    assert read.read[0][0].ids[0][: len(plain)].tolist() == plain
    assert torch.allclose(tokens, tiny.encode_text(escape_brackets(caption)).tokens, atol=1e-6)
    assert not torch.allclose(tokens, tiny.encode_text(caption).tokens, atol=1e-3)


def test_a_caption_that_would_be_cut_is_refused(tiny):
    with pytest.raises(TrainError, match=r"caption of 80 tokens, at most 75 are read; shorten 'dog dog"):
        tokenize_captions(tiny.encoders, ["a dog", "dog " * 80], {})
    tokenize_captions(tiny.encoders, ["dog " * 75], {})
    with pytest.raises(TrainError, match="caption of 76 tokens"):
        tokenize_captions(tiny.encoders, ["<mia> " + "dog " * 74], COUNTS)


def test_a_word_begins_as_its_class_or_at_random(tiny):
    encoder = tiny.encoders[0]
    table = encoder.module.get_input_embeddings().weight
    of = table[encoder.tokenizer("dog").input_ids[1]]

    def first(from_class, layers, count, seed=0):
        return initial_embeddings(encoder, from_class, layers, count, torch.Generator().manual_seed(seed))

    alone = first("dog", 2, 1)
    assert alone.requires_grad and alone.dtype is torch.float32
    assert torch.equal(alone, of.expand(2, 1, -1))
    several = first("dog", 3, 4)
    assert several.shape == (3, 4, 32) and torch.equal(several[0], several[1])
    assert torch.allclose(several[0], of.expand(4, -1), atol=0.06 * float(table.std()))
    assert not torch.equal(several[0, 0], several[0, 1])
    drawn = first(None, 2, 1)
    assert 0.5 * table.std() < drawn.std() < 2 * table.std()
    assert torch.equal(drawn, first(None, 2, 1)) and not torch.equal(drawn, first(None, 2, 1, seed=1))


def test_two_concepts_of_one_class_begin_apart(tiny, teaching, brief):
    recipe = brief("textual-inversion")

    def begun(**classes):
        lessons = [teaching(recipe, name, class_name) for name, class_name in classes.items()]
        with make_trainable(tiny, lessons, recipe) as trained:
            return {word: parts["text_encoder"] for word, parts in trained.learned.items()}

    encoder = tiny.encoders[0]
    table = encoder.module.get_input_embeddings().weight
    woman = table[encoder.tokenizer("woman").input_ids[1]]
    alike = begun(mia="woman", eve="Woman")
    assert not torch.equal(alike["<mia>"], alike["<eve>"])
    assert all(torch.allclose(word[0, 0], woman, atol=0.06 * float(table.std())) for word in alike.values())
    again = begun(mia="woman", eve="Woman")
    assert all(torch.equal(again[word], first) for word, first in alike.items())
    assert torch.equal(begun(mia="woman", rex="dog")["<mia>"][0, 0], woman)


def test_a_class_of_several_tokens_is_refused(tiny):
    with pytest.raises(TrainError) as caught:
        initial_embeddings(tiny.encoders[0], "zxqv robot", 1, 1, torch.Generator())
    said = str(caught.value)
    assert "class 'zxqv robot': the tokenizer splits it into" in said and "\n" not in said
    assert said.endswith("use a class of one token, or embedding_init=random")
