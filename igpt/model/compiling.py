"""`torch.compile` for the blocks of a network, each for itself: all share one compiled code."""

import os

import torch

from igpt import compute, system
from igpt.model import attention
from igpt.model.gpt import GPT


def compile_blocks(network: GPT) -> None:
    """Compile the blocks in place, each for the shapes that it meets."""
    torch.compiler.assume_constant_result(attention.is_built)
    if compute.default_device().type == "cpu":
        _spare_trials()
        _keep_headers()
    for block in network.h:
        block.compile(dynamic=False)


def _spare_trials() -> None:
    """Let PyTorch not try its sets of instructions first, which takes a third of a cold start.

    Our own attention was built for the same processor and tried. That says nothing of AMX, whose
    names older compilers lack while they know all others: PyTorch's trial of it stays.
    """
    flags = system.cpu_flags()
    if "avx2" in flags and "amx_tile" not in flags and attention.is_built():
        from torch._inductor import config  # takes a second to import

        config.cpp.vec_isa_ok = True


def _keep_headers() -> None:
    """Keep what PyTorch makes of its C++ headers beside the code that is compiled with them.

    They take more than the code of a size does (`docs/performance.md`). PyTorch's own place is a
    temporary one, and its name one that others on this machine can foresee.
    """
    from torch._inductor import codecache
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    codecache._HEADER_DIR = os.path.join(cache_dir(), "headers")
    codecache._HEADER_LOCK_DIR = os.path.join(codecache._HEADER_DIR, "locks")
