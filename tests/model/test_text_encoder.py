"""Text features: equal to diffusers and to the official code, with learned words."""

import pytest
import torch
from safetensors.torch import load_file

from costars.errors import SceneError
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.lora import scale_adapter, text_adapter


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


def test_emphasis_scales_words_and_keeps_the_mean(tiny):
    plain, strong = (tiny.encode_text(p).tokens for p in ("a man in the forest", "a (man:1.5) in the forest"))
    ratio = strong / plain
    assert torch.allclose(strong.mean(), plain.mean(), atol=1e-6)
    assert torch.allclose(ratio[0, 2], ratio[0, 0] * 1.5, rtol=1e-3)
    assert torch.equal(tiny.encode_text("a (man:1.0) in the forest").tokens, plain)


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
