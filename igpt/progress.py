"""Progress of long work on standard error: a rich bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_S = 10.0


class Ticker:
    """Progress of a long work: a rich bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, progress: Progress | None, task: TaskID | None, label: str) -> None:
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
            print(f"{self._label} {done}/{total} {text}".rstrip(), file=sys.stderr, flush=True)


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
    return int(os.environ.get("RANK", "0"))


@contextmanager
def ticking(label: str, *, quiet: bool = False) -> Iterator[Ticker]:
    """A `Ticker` on standard error; `quiet` shows nothing, and so do ranks after the first."""
    quiet = quiet or own_rank() > 0
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Ticker(None, None, label) if not quiet else _Silent()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
        TimeRemainingColumn(),
    )
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
    print(text, file=sys.stderr, flush=True)
