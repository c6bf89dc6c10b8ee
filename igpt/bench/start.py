"""How long the program takes to start, and what memory that takes."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from igpt.bench import measure

STARTS = {
    "igpt --help": ["-m", "igpt", "--help"],
    "import igpt": ["-c", "import igpt"],
    "python itself": ["-c", "pass"],
}


def _start(arguments: Sequence[str], peaks: list[int]) -> Callable[[], None]:
    """Start Python anew and wait for its end; the most bytes it held go to `peaks`."""
    command = [sys.executable, *arguments]

    def start() -> None:
        silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=silent)
        _, status, usage = os.wait4(process, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss * 1024)

    return start


def bench_start(
    peers: Sequence[str], *, quick: bool, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """`igpt --help` and `import igpt` in fresh processes, and Python's own start beside them."""
    assert not peers
    peaks: dict[str, list[int]] = {name: [] for name in STARTS}
    works = {name: _start(arguments, peaks[name]) for name, arguments in STARTS.items()}
    repeats = measure.REPEATS if quick else 4 * measure.REPEATS
    spans = measure.take_turns(works, repeats=repeats, at_most_s=at_most_s)
    rows = []
    for name in STARTS:
        (row,) = measure.rows_of(name, {measure.OURS: spans[name]})
        rows.append(replace(row, memory_bytes=max(peaks[name])))
    return rows
