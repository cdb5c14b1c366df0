"""Retrying with less memory, and its limits."""

import pytest
import torch

from costars.errors import ModelError
from costars.retry import retry_with_less_memory


def steps_that_fail(times, error=torch.OutOfMemoryError):
    """Steps that raise the error in their first runs, this many times, and then finish."""
    left = [times]

    def steps():
        yield "a step"
        if left[0]:
            left[0] -= 1
            raise error
        yield "the picture"

    return steps


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, CPU_FULL, MemoryError])
def test_out_of_memory_is_retried_with_less(error):
    made = []
    steps = retry_with_less_memory(steps_that_fail(1, error), lambda: made.append("room") or True)
    assert list(steps) == ["a step", "a step", "the picture"] and made == ["room"]


def test_other_errors_are_not_retried():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(retry_with_less_memory(steps_that_fail(1, RuntimeError("shapes do not match")), lambda: True))


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_memory_is_lowered_until_nothing_is_left_to_lower(times):
    lowered = []
    steps = retry_with_less_memory(steps_that_fail(times), lambda: len(lowered) < 2 and not lowered.append(True))
    if times > 2:
        with pytest.raises(ModelError, match="out of memory, also with few rows per call"):
            list(steps)
    else:
        assert list(steps) == ["a step"] * times + ["a step", "the picture"]
    assert len(lowered) == min(times, 2)
