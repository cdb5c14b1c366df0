"""Text features: equal to diffusers and to the official code, with learned words."""

import pytest
import torch
from safetensors.torch import load_file

from costars.errors import SceneError
from costars.model.adapters import scale_adapter
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import text_adapter
from costars.model.text_encoder import weight_features


@pytest.mark.parametrize("prompt", ["photo of a man and a woman in the forest", "", "unknown wörds, 3!"])
def test_features_equal_diffusers_pipeline(tiny, pipeline, prompt):
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    text = tiny.encode_text(prompt)
    assert torch.allclose(text.tokens, tokens, atol=1e-6)
    assert torch.allclose(text.pooled, pooled, atol=1e-6)
    assert text.prompt == prompt


@pytest.mark.parametrize(
    ("name", "member", "prompt"),
    [
        ("global", None, "photo of a man and a woman in the forest"),
        ("region0", "a", "photo of a man smiling in the forest"),
        ("region1", "b", "photo of a woman with red hat in the forest"),
    ],
)
def test_features_with_adapter_equal_official_code(tiny, golden, concepts, name, member, prompt):
    golden_tensors = load_file(golden / "two_stage.safetensors")
    with text_adapter(tiny.encoders, scale_adapter(concepts[member].adapter, 0.8) if member else {}):
        text = tiny.encode_text(prompt)
    assert torch.allclose(text.tokens, golden_tensors[f"{name}.prompt_embeds"], atol=1e-5, rtol=0)
    assert torch.allclose(text.pooled, golden_tensors[f"{name}.pooled_prompt_embeds"], atol=1e-5, rtol=0)


def test_sdxl_reads_second_to_last_layer_and_clip_skip_overrides(tiny, pipeline):
    assert torch.equal(tiny.encode_text("a man", (), 2).tokens, tiny.encode_text("a man").tokens)
    expected, *_ = pipeline.encode_prompt("a man", do_classifier_free_guidance=False, clip_skip=1)
    assert torch.allclose(tiny.encode_text("a man", (), 3).tokens, expected, atol=1e-6)


CPU = torch.device("cpu")


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


def test_clip_skip_of_sd15_applies_final_norm(sd15):
    (encoder,) = sd15.encoders
    ids = encoder.tokenizer("a man", padding="max_length", return_tensors="pt").input_ids
    hidden = encoder.module(ids, output_hidden_states=True)
    expected = encoder.module.final_layer_norm(hidden.hidden_states[-2])
    assert torch.equal(sd15.encode_text("a man", (), 2).tokens, expected)
    assert torch.equal(sd15.encode_text("a man").tokens, hidden.last_hidden_state)


def test_long_prompt_is_encoded_in_chunks(tiny):
    text = tiny.encode_text(" ".join(["a"] * 70 + ["man"] * 10), ["man"])
    first, second = tiny.encode_text(" ".join(["a"] * 70 + ["man"] * 5)), tiny.encode_text(" ".join(["man"] * 5))
    assert text.tokens.shape == (1, 154, 64)
    assert torch.allclose(text.tokens, torch.cat([first.tokens, second.tokens], dim=1), atol=1e-6)
    assert torch.equal(text.pooled, first.pooled)
    assert text.spans["man"] == (*((71 + i,) for i in range(5)), *((78 + i,) for i in range(5)))


PLAIN, STRONG = "a man in the forest", "a (man:1.5) in the forest"


def test_without_norm_a_weight_multiplies_its_own_word_and_changes_no_other(tiny):
    """The default, as ComfyUI's and Forge's without normalization; the pooled embedding has no weights, as in A1111."""
    plain, strong = tiny.encode_text(PLAIN), tiny.encode_text(STRONG)
    others = [i for i in range(77) if i != 2]
    assert torch.equal(strong.tokens[:, others], plain.tokens[:, others])
    assert torch.equal(strong.tokens[:, 2], plain.tokens[:, 2] * 1.5) and torch.equal(strong.pooled, plain.pooled)
    assert torch.equal(tiny.encode_text("a (man:1.0) in the forest").tokens, plain.tokens)


def test_original_restores_the_mean_of_each_encoder(tiny):
    plain, strong = (tiny.encode_text(p, emphasis="original").tokens for p in (PLAIN, STRONG))
    for own, other in zip(strong.split(32, dim=-1), plain.split(32, dim=-1), strict=True):
        factor = (own / other)[0, 0, 0]
        assert torch.allclose(own.mean(), other.mean(), rtol=1e-3, atol=1e-6) and abs(factor - 1) > 1e-5
        assert torch.allclose(own[:, 2], other[:, 2] * 1.5 * factor, rtol=1e-4)
        assert torch.allclose(own[:, 3:], other[:, 3:] * factor, rtol=1e-4)


def test_original_restores_each_encoder_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 77, d, generator=generator) + 0.3 for d in (8, 12))
    weights = torch.ones(1, 77).index_fill(1, torch.tensor([2, 3]), 1.4)
    both = weight_features(torch.cat([first, second], dim=-1), weights, [8, 12], restore_mean=True)
    alone = [weight_features(each, weights, [each.shape[-1]], restore_mean=True) for each in (first, second)]
    assert torch.allclose(both, torch.cat(alone, dim=-1), atol=1e-6)


def test_a_mean_near_zero_does_not_blow_up_the_features():
    """Features of both signs: the factor of the means alone would be 0.001 / 0.0002 = -5 or 1000."""
    features = torch.ones(1, 77, 4) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    features[:, 2] += 0.02
    for weight, word in ((2.0, 2), (0.001, 2), (-1.0, 2)):
        weights = torch.ones(1, 77)
        weights[0, word] = weight
        ratio = weight_features(features, weights, [4], restore_mean=True)[0, 0] / features[0, 0]
        assert bool((ratio >= 0.5).all()) and bool((ratio <= 2.0).all())


def test_ignored_emphasis_leaves_weights_out_and_plain_text_has_none(tiny):
    plain = tiny.encode_text(PLAIN).tokens
    assert torch.equal(tiny.encode_text(STRONG, emphasis="ignore").tokens, plain)
    literal = tiny.encode_text(r"a \(man:1.5\) in the forest")
    assert torch.equal(tiny.encode_text(STRONG, emphasis="none").tokens, literal.tokens)
    assert tiny.encode_text("salt AND (pepper", ["pepper"], emphasis="none").spans["pepper"]


def test_break_begins_a_chunk_that_equals_the_text_alone(tiny):
    text = tiny.encode_text("a man BREAK (a woman:1.2) in the forest", ["woman", "man a"])
    first, second = tiny.encode_text("a man"), tiny.encode_text("(a woman:1.2) in the forest", ["woman"])
    assert torch.allclose(text.tokens, torch.cat([first.tokens, second.tokens], dim=1), atol=1e-6)
    assert torch.equal(text.pooled, first.pooled)
    assert text.spans["woman"] == tuple(tuple(77 + i for i in span) for span in second.spans["woman"]) == ((79,),)


def test_empty_negative_prompt_follows_the_checkpoint_as_in_diffusers(tiny, pipeline):
    """The tiny checkpoint's model_index.json says force_zeros_for_empty_prompt, as that of SDXL does."""
    _, negative, _, pooled = pipeline.encode_prompt("a man", negative_prompt=None)
    assert tiny.info.force_zeros and not negative.any()
    zeros = tiny.encode_negative()
    assert torch.equal(zeros.tokens, negative) and torch.equal(zeros.pooled, pooled)
    encoded = tiny.encode_negative(force_zeros=False)
    assert torch.equal(encoded.tokens, tiny.encode_text("").tokens) and encoded.tokens.any() and encoded.pooled.any()
    written = tiny.encode_negative("blurry", force_zeros=True)
    assert torch.equal(written.tokens, tiny.encode_text("blurry").tokens)


def learned(tiny, vectors=2, layers=1, seed=0):
    """A word for both encoders: (layers, vectors, width) each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "<toy>": {
            e.name: 0.1 * torch.randn(layers, vectors, e.module.config.hidden_size, generator=generator)
            for e in tiny.encoders
        }
    }


def test_learned_word_equals_diffusers_textual_inversion(tiny, pipeline):
    words = learned(tiny)
    for encoder, tokenizer, text_encoder in zip(
        tiny.encoders,
        (pipeline.tokenizer, pipeline.tokenizer_2),
        (pipeline.text_encoder, pipeline.text_encoder_2),
        strict=True,
    ):
        vectors = words["<toy>"][encoder.name][0]
        pipeline.load_textual_inversion(vectors, token="<toy>", tokenizer=tokenizer, text_encoder=text_encoder)
    expected, _, pooled, _ = pipeline.encode_prompt(
        "photo of <toy> and a man", do_classifier_free_guidance=False, negative_prompt=""
    )
    text = tiny.encode_text("photo of <toy> and a man", ["man", "<toy>"], learned=words)
    assert torch.allclose(text.tokens, expected, atol=1e-6)
    assert text.spans == {"<toy>": ((3, 4),), "man": ((7,),)}
    assert pooled.shape == text.pooled.shape


def test_prompt_without_learned_word_is_unchanged(tiny):
    plain = tiny.encode_text("a toy and a man")
    assert torch.equal(tiny.encode_text("a toy and a man", learned=learned(tiny)).tokens, plain.tokens)


def test_learned_word_with_emphasis_in_second_chunk(tiny):
    words = learned(tiny)
    prompt = " ".join(["a"] * 74 + ["(<toy>:1.3)"])
    text = tiny.encode_text(prompt, ["<toy>"], learned=words)
    assert text.spans["<toy>"] == ((78, 79),)
    alone = tiny.encode_text("<toy>", learned=words).tokens
    assert torch.allclose(
        text.tokens[0, 78] / alone[0, 1] * alone[0, 3] / text.tokens[0, 80], torch.tensor(1.3), rtol=1e-3
    )


def test_learned_word_with_a_vector_for_each_layer(tiny):
    words = learned(tiny, vectors=1, layers=17)
    text = tiny.encode_text("a <toy> man", learned=words)
    assert text.tokens.shape == (17, 77, 64)
    for layer in (0, 16):
        own = {"<toy>": {part: v[layer : layer + 1] for part, v in words["<toy>"].items()}}
        assert torch.allclose(text.tokens[layer], tiny.encode_text("a <toy> man", learned=own).tokens[0], atol=1e-5)


def test_encoding_leaves_encoders_unchanged(tiny, trace):
    before = [trace(e.module) for e in tiny.encoders]
    tiny.encode_text("a <toy> man", learned=learned(tiny))
    assert [trace(e.module) for e in tiny.encoders] == before


def test_word_without_vectors_for_an_encoder_is_rejected(tiny):
    words = learned(tiny)
    del words["<toy>"]["text_encoder_2"]
    with pytest.raises(SceneError, match="learned word '<toy>' has no vectors for the model's text_encoder_2"):
        tiny.encode_text("a <toy> man", learned=words)
