"""The names of the files that a run leaves, and JSON that is written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

UNET = "unet"  # followed by -0, -1, -2 and .safetensors
PARTS, NETS, REPORT, SHEET = "parts.safetensors", "nets.safetensors", "report.json", "sheet.jpg"
VAE, DECODER = "vae.safetensors", "decoder.safetensors"  # in the work folder: what processes leave for each other


def write_json(path: Path, content: Any) -> None:
    """Write JSON by way of another name."""
    partial = path.parent / f".{path.name}.{os.getpid()}"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
