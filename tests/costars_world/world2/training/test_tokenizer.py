from __future__ import annotations

import torch

from costars_world.world2.training.tokenizer import NAMES, CaptionEncoder, load_tokenizers, write_tokenizers

WORDS = ("a", "man", "woman", "with", "an", "orange", "hat", "on", "beach", "and", ",")
CAPTIONS = ["a man with an orange hat, a woman and ana on a beach", "", "a zebra's unknown word"]


def test_ids_equal_those_of_the_tokenizers(tmp_path):
    write_tokenizers(tmp_path, WORDS)
    tokenizers = load_tokenizers(tmp_path)
    ids = CaptionEncoder(tokenizers)(CAPTIONS)
    for tokenizer, found in zip(tokenizers, ids, strict=True):
        whole = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        assert torch.equal(torch.from_numpy(found).long(), whole.input_ids)


def test_every_word_and_name_is_one_token(tmp_path):
    write_tokenizers(tmp_path, WORDS)
    tokenizer, _ = load_tokenizers(tmp_path)
    for word in (*WORDS, *NAMES):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
