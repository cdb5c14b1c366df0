"""Lines for the user."""

import io
import sys

import pytest
import typer

from costars.cli.console import MOST_CHARACTERS, parse_path, print_line, to_line, write_any_path


def test_long_lines_and_brackets_are_printed_unchanged(capsys):
    line = "[bold]masks[/bold] " + "word " * 60 + "'a' 1.5"
    print_line(line)
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(
    ("text", "written"),
    [("caf\udce9/plan.json", b"caf\xe9/plan.json"), ("a\ud800b", b"a\\ud800b"), ("caf\u00e9", "caf\u00e9".encode())],
)
def test_paths_that_are_not_utf8_are_written_byte_for_byte(monkeypatch, text, written):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    write_any_path()
    typer.echo(text)
    print(text, file=sys.stderr)
    for stream in streams.values():
        stream.flush()
        assert stream.buffer.getvalue() == written + b"\n"


def test_error_is_one_line_of_limited_length_without_control_characters():
    assert to_line("a\n b\x1b[2J\u202e\udce9") == "a b\\x1b[2J\\u202e\udce9"
    assert len(to_line("x" * 10**6)) < MOST_CHARACTERS + 10


def test_empty_path_is_refused():
    with pytest.raises(typer.BadParameter, match="is empty; give a path"):
        parse_path("")
