"""The format of a file is detected from its keys."""

import pytest

from costars.concepts.dialects import DIALECTS, PARTS, detect_format


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.marker)
def test_every_dialect_is_detected(dialect):
    start = "" if dialect.leading else "a"
    assert detect_format(["other", f"{start}{dialect.marker}b"]) == dialect.writer


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d.underscored], ids=lambda dialect: dialect.marker)
def test_underscored_dialect_names_a_part(dialect):
    assert dialect.replacement in PARTS


def test_first_dialect_of_the_table_takes_precedence():
    assert detect_format(["unet.conv_in.lora_A.weight", "tokens.text_encoder.<a>"]) == "costars"
    assert detect_format(["base_model.model.conv_in.lora_A.weight"]) == "peft"


@pytest.mark.parametrize("keys", [[], ["unet.conv_in.weight"]])
def test_unknown_format(keys):
    assert detect_format(keys) == "unknown"
