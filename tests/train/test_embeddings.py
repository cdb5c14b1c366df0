"""New words in captions: encoded as in a scene, with gradients for their embeddings alone."""

import pytest
import torch

from costars.errors import TrainError
from costars.scene.prompt_syntax import escape_brackets
from costars.train.embeddings import class_embeddings, random_embeddings, tokenize_captions

CAPTIONS = ("photo of a <mia> woman, and <mia>", "a <rex> dog and a <mia> woman", "a dog")
COUNTS = {"<mia>": 2, "<rex>": 2}


@pytest.fixture
def make_embeddings(tiny):
    """Two random vectors of each word for each text encoder."""
    generator = torch.Generator().manual_seed(0)
    widths = {e.name: e.module.config.hidden_size for e in tiny.encoders}

    def make(layers=1):
        return {
            word: {n: torch.nn.Parameter(torch.randn(layers, 2, w, generator=generator)) for n, w in widths.items()}
            for word in COUNTS
        }

    return make


@pytest.mark.parametrize("layers", [1, 3])
def test_captions_are_encoded_as_in_a_scene(tiny, make_embeddings, layers):
    embeddings = make_embeddings(layers)
    captions = tokenize_captions(tiny.encoders, CAPTIONS, COUNTS, layers)
    tokens, pooled = captions.encode(tiny.encoders, [1, 0, 2], embeddings)
    assert tokens.shape == (3, layers * 77, 64)
    for row, caption in enumerate((CAPTIONS[1], CAPTIONS[0], CAPTIONS[2])):
        text = tiny.encode_text(caption, learned=embeddings)
        assert torch.allclose(tokens[row].unflatten(0, (layers, 77)), text.tokens, atol=1e-5)
        assert torch.allclose(pooled[row], text.pooled[0], atol=1e-5)


def test_sd15_has_no_pooled_embedding(small15):
    tokens, pooled = tokenize_captions(small15.encoders, ["a dog"], {}).encode(small15.encoders, [0], {})
    assert pooled is None and torch.allclose(tokens, small15.encode_text("a dog").tokens, atol=1e-5)


def test_gradients_reach_only_embeddings_in_the_batch(tiny, make_embeddings, trace):
    embeddings, before = make_embeddings(), [trace(e.module) for e in tiny.encoders]
    captions = tokenize_captions(tiny.encoders, CAPTIONS, COUNTS)
    tokens, pooled = captions.encode(tiny.encoders, [0], embeddings)
    (tokens.square().sum() + pooled.square().sum()).backward()
    assert all((p.grad.abs().sum(dim=-1) > 0).all() for p in embeddings["<mia>"].values())
    assert all(p.grad is None or not p.grad.any() for p in embeddings["<rex>"].values())
    assert [trace(e.module) for e in tiny.encoders] == before
    assert all(p.grad is None for e in tiny.encoders for p in e.module.parameters())


def test_token_positions_are_those_of_the_word(tiny):
    captions = tokenize_captions(tiny.encoders, CAPTIONS, COUNTS)
    ids, tokenizer = captions.prompts[0][0].ids[0].tolist(), tiny.encoders[0].tokenizer
    first, second, third, fourth = captions.token_positions(0, "<mia>")
    assert ids[0] == tokenizer.bos_token_id
    assert (second, fourth) == (first + 1, third + 1) and fourth == ids.index(tokenizer.eos_token_id) - 1
    assert captions.token_positions(0, "<rex>") == () == captions.token_positions(2, "<mia>")
    assert min(captions.token_positions(1, "<mia>")) > max(captions.token_positions(1, "<rex>"))


def test_brackets_in_captions_are_plain_text(tiny):
    caption = r"a woman (red hair:1.5) [left] \ there"
    captions = tokenize_captions(tiny.encoders, [caption], {})
    tokens, _ = captions.encode(tiny.encoders, [0], {})
    ids = tiny.encoders[0].tokenizer(caption).input_ids
    assert captions.prompts[0][0].ids[0][: len(ids)].tolist() == ids
    assert torch.allclose(tokens, tiny.encode_text(escape_brackets(caption)).tokens, atol=1e-6)
    assert not torch.allclose(tokens, tiny.encode_text(caption).tokens, atol=1e-3)


def test_too_long_captions_are_rejected(tiny):
    with pytest.raises(TrainError, match=r"caption of 80 tokens, at most 75 are read; shorten 'dog dog"):
        tokenize_captions(tiny.encoders, ["a dog", "dog " * 80], {})
    tokenize_captions(tiny.encoders, ["dog " * 75], {})
    with pytest.raises(TrainError, match="caption of 76 tokens"):
        tokenize_captions(tiny.encoders, ["<mia> " + "dog " * 74], COUNTS)


def table_of(encoder):
    return encoder.module.get_input_embeddings().weight


def test_class_embeddings_are_copies_of_the_class_word(tiny):
    encoder = tiny.encoders[0]
    word = table_of(encoder)[encoder.tokenizer("dog").input_ids[1]]
    embeddings = class_embeddings(encoder, "dog", (2, 1), torch.Generator())
    assert embeddings.requires_grad and embeddings.dtype is torch.float32
    assert torch.equal(embeddings, word.expand(2, 1, -1))


def test_several_class_embeddings_differ_by_a_little_noise(tiny):
    encoder = tiny.encoders[0]
    table = table_of(encoder)
    word = table[encoder.tokenizer("dog").input_ids[1]]
    several = class_embeddings(encoder, "dog", (3, 4), torch.Generator().manual_seed(0))
    assert several.shape == (3, 4, 32) and torch.equal(several[0], several[1])
    noise = torch.randn((4, 32), generator=torch.Generator().manual_seed(0)) * table.std() / 100
    assert torch.allclose(several[0], word + noise, atol=1e-7)
    jittered = class_embeddings(encoder, "dog", (1, 1), torch.Generator().manual_seed(0), jitter=True)
    noise = torch.randn((1, 32), generator=torch.Generator().manual_seed(0)) * table.std() / 100
    assert torch.allclose(jittered[0], word + noise, atol=1e-7)


def test_random_embeddings_have_the_scale_of_the_table_and_follow_the_seed(tiny):
    encoder = tiny.encoders[0]

    def draw(seed=0):
        return random_embeddings(encoder, (2, 1), torch.Generator().manual_seed(seed))

    std = table_of(encoder).std()
    assert draw().shape == (2, 1, 32) and 0.5 * std < draw().std() < 2 * std
    assert torch.equal(draw(), draw()) and not torch.equal(draw(), draw(seed=1))


def test_class_of_several_tokens_is_rejected(tiny):
    with pytest.raises(TrainError) as caught:
        class_embeddings(tiny.encoders[0], "zxqv robot", (1, 1), torch.Generator())
    message = str(caught.value)
    assert "class 'zxqv robot': the tokenizer splits it into" in message and "\n" not in message
    assert message.endswith("use a class of one token, or embedding_init=random")
