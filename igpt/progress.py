"""Progress of long work on standard error: a rich bar on a terminal, plain lines elsewhere.

What only watches never stops the work: a stream that cannot be written is left alone.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_LINE_EVERY_S = 10.0
_IS_QUIET = ContextVar("_IS_QUIET", default=False)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Print nothing inside, for callers in Python; what begins with `warning:` is a warning."""
    token = _IS_QUIET.set(quiet)
    try:
        yield
    finally:
        _IS_QUIET.reset(token)


class Ticker:
    """Progress of a long work: a rich bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, progress: "Progress | None", task: "TaskID | None", label: str) -> None:
        self._progress = progress
        self._task = task
        self._label = label
        self._printed_s = 0.0

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` is done, with a few words."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, text=text)
            return
        now_s = time.monotonic()
        if now_s - self._printed_s >= PLAIN_LINE_EVERY_S or done == total:
            self._printed_s = now_s
            _tell(f"{self._label} {done}/{total} {text}".rstrip())


class Counter:
    """Turns `n more are done` into a ticker's `k of N`."""

    def __init__(self, ticker: Ticker, total: int, unit: str = "") -> None:
        self._ticker, self._total, self._unit, self._done = ticker, total, unit, 0

    def __call__(self, n: int) -> None:
        """Count n more."""
        self._done += n
        self._ticker.update(self._done, self._total, self._unit)


def own_rank() -> int:
    """This process's number among those that `torchrun` started; 0 where it is alone."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdigit() else 0


def _tell(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # full, closed, or of an old encoding
        print(line, file=sys.stderr, flush=True)


def _is_live() -> bool:
    """Whether lines can be drawn anew; what FORCE_COLOR says of a file is not that."""
    try:
        is_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False
    return is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def n_ranks() -> int:
    """How many processes `torchrun` started; 1 where it did not."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isdigit() and os.environ.get("RANK") else 1


@contextmanager
def ticking(label: str, *, quiet: bool = False) -> Iterator[Ticker]:
    """A `Ticker` on standard error; `quiet` shows nothing, and so do ranks after the first."""
    quiet = quiet or own_rank() > 0 or _IS_QUIET.get()
    if quiet or not _is_live():
        yield Ticker(None, None, label) if not quiet else _Silent()
        return
    from rich.console import Console  # not where torch alone is installed: benchmarks/gpu.sh
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, force_terminal=True)
    with Progress(*columns, console=console, transient=False) as progress:
        yield Ticker(progress, progress.add_task(label, total=None, text=""), label)


class _Silent(Ticker):
    def __init__(self) -> None:
        super().__init__(None, None, "")

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show nothing."""


def say(text: str, *, from_any_rank: bool = False) -> None:
    """A line for the person at the terminal, on standard error; from the first rank only."""
    if own_rank() > 0 and not from_any_rank:
        return
    if _IS_QUIET.get():
        if text.startswith("warning: "):
            warnings.warn(text.removeprefix("warning: "), stacklevel=2)
        return
    _tell(text)
