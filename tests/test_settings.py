"""Machine settings from the environment and from arguments."""

import os
from pathlib import Path

import pytest

from costars.errors import SettingsError
from costars.settings import machine_settings


def test_environment_is_read_and_arguments_override_it(monkeypatch):
    monkeypatch.setenv("COSTARS_DEVICE", "cpu")
    monkeypatch.setenv("COSTARS_MAX_ROWS", "4")
    settings = machine_settings(max_rows=2)
    assert (settings.device, settings.max_rows) == ("cpu", 2)


def test_concept_folders_are_separated_as_in_path(monkeypatch):
    monkeypatch.setenv("COSTARS_CONCEPT_FOLDERS", os.pathsep.join(["/loras", "~/more", ""]))
    assert machine_settings().concept_folders == (Path("/loras"), Path.home() / "more")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COSTARS_DEVICE", "toaster", "COSTARS_DEVICE='toaster': Input should be 'auto', 'cpu' or 'cuda'; correct or"),
        ("COSTARS_MAX_ROWS", "-1", "COSTARS_MAX_ROWS='-1': Input should be greater than or equal to 0; correct or"),
    ],
)
def test_invalid_value_is_reported_with_its_variable(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        machine_settings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COSTARS_LIBRARY", "", "COSTARS_LIBRARY='': want the path of a folder; correct or unset it"),
        ("COSTARS_LIBRARY", "~nobody-here/x", "COSTARS_LIBRARY='~nobody-here/x': no such user's home folder"),
        ("COSTARS_CONCEPT_FOLDERS", "/a:~nobody-here/x", "no such user's home folder"),
    ],
)
def test_folder_that_cannot_be_meant_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        machine_settings()


def test_library_may_be_below_the_home_folder(monkeypatch):
    monkeypatch.setenv("COSTARS_LIBRARY", "~/concepts")
    assert machine_settings().library == Path.home() / "concepts"
