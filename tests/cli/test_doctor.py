"""costars doctor: what is found and what is missing."""

from pathlib import Path

from costars.cli.doctor import _shorten, _waiting_settings, check_machine


def test_doctor_reports_missing_weights(cli, tmp_path):
    code, out, _ = cli("doctor")
    lines = {line[5:19].strip(): (line[:4].strip(), line[20:]) for line in out.splitlines()}
    assert code == 1
    assert lines["builtin model"][0] == "MISS" and "nothing-shipped" in lines["builtin model"][1]
    assert lines["concepts"] == ("ok", "2 found")
    assert {lines[name][0] for name in ("python", "torch", "diffusers", "peft", "device", "memory")} == {"ok"}


def test_library_that_cannot_be_read_is_missing(tmp_path, monkeypatch):
    (tmp_path / "library").touch()
    monkeypatch.setenv("COSTARS_LIBRARY", str(tmp_path / "library"))
    findings = {finding.name: finding for finding in check_machine()}
    assert (
        not findings["concepts"].ok and "library: the folder of concepts cannot be read" in findings["concepts"].value
    )


def test_packages_that_are_not_installed_are_reported_with_the_command(monkeypatch):
    monkeypatch.setattr("costars.cli.doctor.REQUIRED", ("no-such-package",))
    findings = {finding.name: finding for finding in check_machine()}
    assert findings["no-such-package"] == ("no-such-package", "not installed; run: pip install no-such-package", False)


def test_waiting_settings_of_openmp_are_shown(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert _waiting_settings() == "OMP_WAIT_POLICY=ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert _waiting_settings() == "OpenMP's default waiting"


def test_home_folder_is_shortened():
    assert _shorten(Path.home() / "library") == Path("~/library")
    assert _shorten(Path("/opt/library")) == Path("/opt/library")
