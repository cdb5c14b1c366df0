"""python -m costars_world.world2.training.package DIR: the training's code as a wheel, without weights.

A machine that is lent for one run has no checkout of its own; it installs this beside the wheels it lacks.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

VERSION = "0.1.0"
ROOT = Path(__file__).parents[3]  # src
FOLDERS = ("costars_world/world2",)  # with all modules below
MODULES = ("costars/__init__.py", "costars/errors.py", "costars/threads.py", "costars_world/__init__.py")


def build_wheel(folder: Path) -> Path:
    """Write the wheel into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"costars-{VERSION}-py3-none-any.whl"
    info = f"costars-{VERSION}.dist-info"
    modules = [ROOT / name for name in MODULES]
    modules += [p for name in FOLDERS for p in sorted((ROOT / name).rglob("*.py"))]
    texts = {p.relative_to(ROOT).as_posix(): p.read_text() for p in modules}
    texts[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: costars\nVersion: {VERSION}\n"
    texts[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: costars\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/RECORD"
    texts[record] = "".join(f"{name},,\n" for name in (*texts, record))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in texts.items():
            wheel.writestr(name, text)
    return path


if __name__ == "__main__":
    print(build_wheel(Path(sys.argv[1])))
