"""Which errors mean that memory ran out."""

import pytest
import torch

from costars.errors import CostarsError, ran_out_of_memory

MESSAGES = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "could not create a primitive",
    "could not create a memory object",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_torch_and_its_libraries_are_known(message):
    assert ran_out_of_memory(RuntimeError(message))


def test_types_and_causes_are_known():
    assert ran_out_of_memory(MemoryError()) and ran_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert ran_out_of_memory(OSError(12, "Cannot allocate memory"))
    wrapped = CostarsError("cannot be loaded")
    wrapped.__cause__ = MemoryError()
    assert ran_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        CostarsError("prompt: 'out of memory' is no word"),
        OSError(28, "No space left on device"),
        None,
    ],
)
def test_other_errors_are_not(error):
    assert not ran_out_of_memory(error)
