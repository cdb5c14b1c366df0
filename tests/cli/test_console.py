"""Lines for the user."""

from costars.cli.console import print_line


def test_long_lines_and_brackets_are_printed_unchanged(capsys):
    line = "[bold]masks[/bold] " + "word " * 60 + "'a' 1.5"
    print_line(line)
    assert capsys.readouterr() == ("", line + "\n")
