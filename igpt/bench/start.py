"""How long the program takes to start, and what memory that takes."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from igpt.bench import measure
from igpt.bench.command import run_command

STARTS = {
    "igpt --help": [sys.executable, "-m", "igpt", "--help"],
    "import igpt": [sys.executable, "-c", "import igpt"],
}
PYTHON = "python itself"


def _start(command: list[str]) -> Callable[[], None]:
    """Start Python anew and wait for its end."""

    def start() -> None:
        silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        process = os.posix_spawn(command[0], command, os.environ, file_actions=silent)
        assert os.waitpid(process, 0)[1] == 0

    return start


def bench_start(
    peers: Sequence[str], *, quick: bool, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """`igpt --help` and `import igpt` in fresh processes, and Python's own start beside them."""
    assert not peers
    works = {name: _start(command) for name, command in STARTS.items()}
    works[PYTHON] = _start([sys.executable, "-c", "pass"])
    repeats = measure.REPEATS if quick else 4 * measure.REPEATS
    spans = measure.take_turns(works, repeats=repeats, at_most_s=at_most_s)
    rows = []
    for name, command in STARTS.items():
        (row,) = measure.rows_of(name, {measure.OURS: spans[name], PYTHON: spans[PYTHON]})
        rows.append(replace(row, memory_bytes=run_command(command).peak_bytes))
    return rows
