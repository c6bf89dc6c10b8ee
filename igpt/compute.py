"""The machine: device, number type, threads, and its speed measured on the spot."""

import contextlib
import ctypes
import os
import resource
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from igpt import cpp

Precision = Literal["auto", "fp32", "bf16"]


def default_device() -> torch.device:
    """The first accelerator, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def set_threads() -> int:
    """Use every core this process may run on, or `OMP_NUM_THREADS`; returns the count."""
    _keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor of that size.

    By default each large tensor is lent by the system anew, page by page and filled with zeros:
    a fifth of a training step's time.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operators on one thread: small ones are done before others would have begun.

    On a busy machine each wait for another thread can cost a time slice, some 10 ms.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def seconds_of(work: Callable[[], object], device: torch.device, *, at_least_s: float) -> float:
    """Median seconds of one call of `work`, after a warm-up call, over at least `at_least_s`."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    spans: list[float] = []
    end_s = time.perf_counter() + at_least_s
    while not spans or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        wait()
        spans.append(time.perf_counter() - start_s)
    return sorted(spans)[len(spans) // 2]


@lru_cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, measured now (0.2 s)."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=dtype)
    b = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / seconds_of(lambda: a @ b, device, at_least_s=0.2)


@lru_cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second, read plus written, of a copy far larger than any cache, measured now."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    span_s = seconds_of(lambda: target.copy_(source), device, at_least_s=0.3)
    return 2 * source.nbytes / span_s


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the matrix products; `auto` takes the faster one, measured on the spot.

    CPUs differ by up to four times in either direction, so no rule by name would do.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or device.type == "cuda":
        return torch.bfloat16
    faster = matrix_rate(device, torch.bfloat16) > 1.2 * matrix_rate(device, torch.float32)
    return torch.bfloat16 if faster else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Matrix products in `dtype`, everything that sums in float32; nothing where it is float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def compile_problem(device: torch.device) -> str | None:
    """Why `torch.compile` cannot build for a device here, in one line; none: it can."""
    if device.type == "cuda":
        return None
    return cpp.built(cpp.TORCH_COMPILE).reason or None


def has_compiler() -> bool:
    """Whether `torch.compile` can build for the CPU here."""
    return compile_problem(torch.device("cpu")) is None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the accelerator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss: a fresh process begins with that of the process that started it.
    return _process_bytes("VmHWM")


def memory_growth(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a call of `work` takes beyond what was taken before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    _forget_peak()
    before = _process_bytes("VmRSS")
    work()
    return max(0, _process_bytes("VmHWM") - before)


def _forget_peak() -> None:
    """Give freed memory back to the system, and count the process's peak from now on."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc alone keeps it and can give it back
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _process_bytes(field: str) -> int:
    """A size from /proc/self/status; elsewhere the peak since the process began."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory_bytes(device: torch.device) -> int:
    """Memory that new work may take: of the accelerator, else of the machine (or its cgroup)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, KeyError):
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max" where the group has no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free
