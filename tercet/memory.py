"""Memory that is full: known by what the libraries raise, and given back."""

import gc

import torch

FULL = (  # words of RuntimeErrors; for the allocators of CUDA and XPU PyTorch has a class
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what a device, its libraries or the CPU's allocator raise when it is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def free_memory(device: torch.device) -> None:
    """Give back what a failed attempt has left behind."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
