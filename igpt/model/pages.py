"""Memory in pages of 2 MB: what is read whole at every step is read faster from large pages."""

import mmap

import torch
from torch import Tensor

LARGE_PAGE = 2**21


def large_memory(n_bytes: int) -> Tensor:
    """(n_bytes,) uint8 of any content, lent by the system as it is first written.

    In a memory map of its own, since pages that a process has used before stay small. Where the
    system has no large pages for it, or the memory would not fill one, it is ordinary.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or n_bytes < LARGE_PAGE:
        return torch.empty(n_bytes, dtype=torch.uint8)
    whole = -(-n_bytes // LARGE_PAGE) * LARGE_PAGE + LARGE_PAGE  # room to begin at a page's edge
    pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(advice)
    except OSError:
        return torch.empty(n_bytes, dtype=torch.uint8)  # a kernel without them
    memory = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the map as long as it lives
    start = -memory.data_ptr() % LARGE_PAGE
    return memory[start : start + n_bytes]
