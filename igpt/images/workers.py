"""Processes that decode: one thread each, with a time limit an image, gone with their parent."""

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait

from threadpoolctl import threadpool_limits

from igpt.errors import UserError


def worker_pool(workers: int, *, method: str | None = None) -> ProcessPoolExecutor:
    """Processes for work that holds Python's lock.

    Args:
        workers: how many; 0: one a core.
        method: how they start, spawn or fork; none: forked where this process has no other
            threads that could hold a lock, since then they start at once.
    """
    method = method or start_method()
    return ProcessPoolExecutor(n_workers(workers), get_context(method), start_worker)


def start_method() -> str:
    """How processes of `worker_pool` start here unless it is told."""
    return "fork" if threading.active_count() == 1 else "spawn"


def n_workers(workers: int) -> int:
    """How many that is: 0 means one for each core this process may use.

    Raises:
        UserError: it is below 0.
    """
    if workers < 0:
        raise UserError(f"--workers {workers} is not possible: choose 0 for one a core, or more")
    return workers or len(os.sched_getaffinity(0))


def start_worker() -> None:
    """Set up a worker process: one thread, deaf to Ctrl-C, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    warnings.simplefilter("ignore")  # Pillow's, of damaged metadata; the pixels decide
    parent = parent_process()
    assert parent is not None, "not a worker process"
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """The alarm clock of `limited`; only a main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:  # noqa: ARG001
        raise UserError("takes too long to decode")

    before = signal.signal(signal.SIGPROF, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what is inside when its time is over: files can be made to decode for hours.

    Processor seconds count: a machine that pauses or is busy must not cost images.

    Raises:
        UserError: it takes longer.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        if is_main:
            signal.setitimer(signal.ITIMER_PROF, 0)
