"""How OpenMP's threads wait for each other, set before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Threads that wait by spinning take the core that another process needs: a busy machine becomes ten times slower.
# So many spins, then sleep: as fast as spinning on an idle machine, and as sleeping on a busy one (bench/waiting.py).
BOUNDED_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads spin briefly, then sleep; does nothing where the user set a policy. Call before torch loads.

    OMP_WAIT_POLICY is read by every OpenMP runtime, GOMP_SPINCOUNT by GNU's alone, where it has precedence.
    """
    if not BOUNDED_WAITING.keys() & environment.keys():
        environment.update(BOUNDED_WAITING)
