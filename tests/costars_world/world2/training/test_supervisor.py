from __future__ import annotations

import subprocess
import sys
import zipfile

from costars_world.world2.training.package import build_wheel

CHECK = "import sys, costars_world.world2.training.__main__; sys.exit('torch' in sys.modules)"


def test_what_forks_has_never_imported_torch():
    assert subprocess.run([sys.executable, "-c", CHECK], check=False).returncode == 0


def test_the_wheel_holds_the_training_and_the_renderer(tmp_path):
    names = zipfile.ZipFile(build_wheel(tmp_path)).namelist()
    assert "costars_world/world2/training/supervisor.py" in names
    assert "costars_world/world2/render/scene.py" in names
    assert "costars/__init__.py" in names
