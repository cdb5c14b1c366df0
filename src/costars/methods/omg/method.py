"""OMG (Kong et al., ECCV 2024, arXiv 2403.10983) as a method of the catalog."""

from __future__ import annotations

from costars.methods.method import Method
from costars.methods.omg.stages import draw_layout, personalise

METHOD = Method(draw_layout=draw_layout, personalise=personalise)
