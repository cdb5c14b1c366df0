"""python -m costars_world.benchmarks."""

import json

import pytest
from PIL import Image

from costars_world.benchmarks import __main__ as command


def test_command_writes_table_plot_and_sheet(short_identity, tmp_path, capsys):
    command.main(["identity", "--out", str(tmp_path), "--seeds", "1", "--device", "cpu"])
    assert "| man+woman | two_stage |" in capsys.readouterr().out
    written = json.loads((tmp_path / "identity.json").read_text())
    assert written["pictures"] == 3 and [row["variant"] for row in written["rows"]] == [
        "two_stage",
        "early",
        "multi_lora",
    ]
    for name in ("identity.png", "identity-sheet.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 256


@pytest.mark.parametrize("arguments", [["identity", "--seeds", "0"], ["nothing"]])
def test_invalid_options_are_rejected(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main([*arguments, "--out", str(tmp_path)])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err
