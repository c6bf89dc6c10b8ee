"""Processes that decode: one thread each, with a time limit an image, gone with their parent."""

import contextlib
import functools
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

# Before its threads are limited: what is loaded later starts with one a core. In a spawned process
# nothing else has loaded it by then.
import numpy as np  # noqa: F401
from threadpoolctl import threadpool_limits

from igpt import system
from igpt.errors import UserError
from igpt.progress import say

P = ParamSpec("P")
T = TypeVar("T")


class _ThisProcess(Executor):
    """Does the work at once, where a system gives no processes to share it with."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def worker_pool(workers: int, *, method: str | None = None) -> Executor:
    """Processes for work that holds Python's lock; none but this one where there can be no others.

    Args:
        workers: how many; 0: one a core.
        method: how they start, spawn or fork; none: as `system.start_method` says.
    """
    if system.processes_problem():
        return _ThisProcess()
    method = method or system.start_method()
    return ProcessPoolExecutor(n_workers(workers), get_context(method), start_worker)


def n_workers(workers: int) -> int:
    """How many that is: 0 means one for each core this process may use.

    Raises:
        UserError: it is below 0.
    """
    if workers < 0:
        raise UserError(f"--workers {workers} is not possible: choose 0 for one a core, or more")
    wanted = workers or system.cores()
    if wanted > 1 and (problem := system.processes_problem()):
        _say_once(f"{problem}: images are decoded in one process, as with --workers 1")
        return 1
    return wanted


@functools.cache
def _say_once(text: str) -> None:
    say(text)


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
