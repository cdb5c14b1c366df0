"""Words that the built-in model does not know are named."""

import pytest
from transformers import CLIPTokenizer

from costars.builtin.vocabulary import describe_unknown_words, find_unknown_words
from costars.settings import Settings
from costars_world.render.backgrounds import PLACES


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(Settings().builtin / "model" / "tokenizer", local_files_only=True)


def test_unknown_words_are_named_with_a_near_one(tokenizer):
    prompts = ["a woman in front of a castel on a beech", "(Wizard:1.2) in a park", ""]
    assert [list(find_unknown_words(tokenizer, prompt)) for prompt in prompts] == [["castel", "beech"], ["wizard"], []]
    (note,) = describe_unknown_words(tokenizer, prompts)
    assert note.startswith("the built-in model does not know 'castel', 'beech' (did you mean 'beach'?), 'wizard' and")


def test_what_the_readme_lists_is_known_and_so_are_triggers(tokenizer):
    relations = "in front of behind next to to the left of to the right of"
    places = " ".join(place.phrase for place in PLACES.values())
    assert describe_unknown_words(tokenizer, [relations, places, "a man, a woman and a dog, cat, robot"]) == ()
    assert describe_unknown_words(tokenizer, ["an Ohwx woman"], ["ohwx"]) == ()
