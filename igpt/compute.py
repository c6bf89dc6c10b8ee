"""The machine: device, number type, threads, and its speed measured on the spot."""

import contextlib
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from igpt import cpp, system
from igpt.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]
T = TypeVar("T")
Clock = Callable[[], float]

_chosen: torch.device | None = None

# Accelerators, in the order in which they are looked for; `cuda` is also AMD's (ROCm).
ACCELERATORS = ("cuda", "xpu", "mps")


def devices() -> list[str]:
    """The kinds of device that this machine and this PyTorch have; the CPU last."""
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "xpu": torch.xpu.is_available,
        "mps": torch.backends.mps.is_available,
    }
    return [*(kind for kind in ACCELERATORS if there[kind]()), "cpu"]


def default_device() -> torch.device:
    """The one of `use_device`, else the first accelerator, else the CPU."""
    kind = devices()[0] if _chosen is None else _chosen.type
    if _chosen is not None and (_chosen.index is not None or kind != "cuda"):
        return _chosen
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def use_device(name: str | None) -> None:
    """Let all that follows compute on a device, by PyTorch's name for it; none: choose again.

    Raises:
        UserError: there is no such device here.
    """
    global _chosen
    _chosen = None if name is None else device_of(name)


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name of PyTorch's.

    Raises:
        UserError: there is no such device here.
    """
    here = f"here are {', '.join(devices())}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"--device {name} is no device of PyTorch's: {here}") from None
    if device.type not in devices():
        raise UserError(f"--device {name} is not there: {here}")
    n_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= n_devices:
        raise UserError(f"--device {name} is not there: {device.type} has {n_devices} device(s)")
    return device


def set_threads() -> int:
    """Use every core this process may run on, or `OMP_NUM_THREADS`; returns the count."""
    system.keep_freed_memory()
    if not re.match("[1-9]", os.environ.get("OMP_NUM_THREADS", "")):  # OpenMP takes no other
        torch.set_num_threads(system.cores())
    return torch.get_num_threads()


def batch_of(sizes: Mapping[str, T], device: torch.device) -> T:
    """What suits a kind of device, of a table that names `cpu` and `cuda`, for all accelerators."""
    return sizes["cpu" if device.type == "cpu" else "cuda"]


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


def drawing_apart() -> contextlib.AbstractContextManager[None]:
    """For making modules: PyTorch's draw first values from the numbers of the whole process.

    What igpt needs at random comes from `igpt.streams`; the caller's numbers go on as they were.
    """
    return torch.random.fork_rng(devices=())


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run blocks that are compiled for training as they were written, for shapes met once.

    Where the compiler was not imported nothing is compiled, and importing it would take a second.
    """
    with contextlib.ExitStack() as held:
        if "torch._dynamo" in sys.modules:
            held.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def seconds_of(
    work: Callable[[], object],
    device: torch.device,
    *,
    at_least_s: float,
    clock: Clock = time.perf_counter,
) -> float:
    """Median seconds of one call of `work`, after a warm-up call, over at least `at_least_s`."""

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    work()
    wait()
    spans: list[float] = []
    end_s = clock() + at_least_s
    while not spans or clock() < end_s:
        start_s = clock()
        work()
        wait()
        spans.append(clock() - start_s)
    return sorted(spans)[len(spans) // 2]


@lru_cache
def matrix_rate(
    device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter
) -> float:
    """Floating-point operations a second of a large matrix product, measured now (0.2 s)."""
    rate = 0.0
    for side in (256, 1024) if device.type == "cpu" else (8192,):
        if 0 < rate < 2 * side**3 / 0.2:
            break  # bfloat16 that is only imitated: the larger product would take seconds
        a = torch.ones(side, side, device=device, dtype=dtype)
        b = torch.ones(side, side, device=device, dtype=dtype)
        rate = 2 * side**3 / seconds_of(lambda: a @ b, device, at_least_s=0.2, clock=clock)  # noqa: B023 - called at once
    return rate


@lru_cache
def copy_rate(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Bytes a second, read plus written, of a copy far larger than any cache, measured now."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    span_s = seconds_of(lambda: target.copy_(source), device, at_least_s=0.3, clock=clock)
    return 2 * source.nbytes / span_s


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the matrix products; `auto` takes bfloat16 where the device multiplies it itself.

    That depends on the device alone and not on a measurement: the same command gives the same
    figures on a busy machine. Cards without bfloat16 take float32: the range of float16 is too
    small for the last layers' values.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}: choose {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float32


@lru_cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16; others only imitate them."""
    if device.type == "cuda":  # from compute capability 8.0 on, or AMD's cards that have it
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "xpu":
        return bool(torch.xpu.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(system.cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return False  # Apple's GPUs: newer ones do, and none was at hand to measure


def name_of(dtype: torch.dtype) -> Literal["fp32", "bf16"]:
    """The type as configurations and records name it."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def for_float64(device: torch.device) -> torch.device:
    """Where to fit in float64: the device, or the CPU beside one that has no such type."""
    return torch.device("cpu") if device.type == "mps" else device


def sums_dtype(device: torch.device) -> torch.dtype:
    """What long sums that stay on a device are kept in: float64, else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Matrix products in `dtype`, everything that sums in float32; nothing where it is float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def compile_problem(device: torch.device) -> str | None:
    """Why `torch.compile` cannot build for a device here, in one line; none: it can."""
    if device.type == "mps":
        return "for Apple GPUs nothing is compiled: no machine was at hand to try it on"
    if device.type != "cpu":
        return None
    return cpp.built(cpp.TORCH_COMPILE).reason or None


def has_compiler() -> bool:
    """Whether `torch.compile` can build for the CPU here."""
    return compile_problem(torch.device("cpu")) is None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the accelerator, else of this process."""
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return system.peak_bytes()


class _CountedTensors(TorchDispatchMode):
    """Adds up the bytes of tensors that operators make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() in self._known or not storage.nbytes():
            return  # a view, or changed in place
        self._known.add(storage.data_ptr())
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage.data_ptr(), storage.nbytes())

    def _forget(self, address: int, n_bytes: int) -> None:
        self._known.discard(address)
        self.now -= n_bytes


def memory_growth(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that a call of `work` takes beyond what was taken before."""
    if device.type == "cpu":  # a process's memory would also show what its allocator keeps back
        counted = _CountedTensors()
        with counted:
            work()
        return counted.most
    if device.type == "mps":  # its driver keeps what was freed, and so its growth is the peak's
        torch.mps.empty_cache()
        before = torch.mps.driver_allocated_memory()
        work()
        torch.mps.synchronize()
        return max(0, torch.mps.driver_allocated_memory() - before)
    before = torch.accelerator.memory_allocated(device)
    torch.accelerator.reset_peak_memory_stats(device)
    work()
    return torch.accelerator.max_memory_allocated(device) - before


def free_memory_bytes(device: torch.device) -> int:
    """Memory that new work may take: of the accelerator, else of the machine or its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)[0]
    free = system.free_memory_bytes()
    if device.type == "mps":  # shares the machine's memory, up to a limit of its own
        own = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return max(0, min(free, own))
    return free
