"""Set how OpenMP's threads wait for each other, before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# A thread that waits by spinning occupies a core that another process needs; a busy machine becomes ten times slower.
# Spinning briefly and then sleeping is as fast as spinning on an idle machine, and as sleeping on a busy one
# (bench/waiting.py, docs/decisions/0020).
BOUNDED_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads spin briefly and then sleep, unless the user has set a policy. Call before importing torch.

    Every OpenMP runtime reads OMP_WAIT_POLICY; only GNU's reads GOMP_SPINCOUNT, which takes precedence there.
    """
    if not BOUNDED_WAITING.keys() & environment.keys():
        environment.update(BOUNDED_WAITING)
