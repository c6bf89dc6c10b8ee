"""Seconds and peak memory of a whole command, in processes of its own; and those of the start.

`python -m igpt.bench.command SECONDS COMMAND...` prints them as JSON. A process inherits the peak
of the one that starts it, so the command is started by this module in a process that imports
nothing large, never by one that has loaded torch.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from igpt.bench import measure
from igpt.errors import UserError


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one command."""

    status: int
    """Its exit status; negative: the signal that ended it, 9 where its time was up."""
    span_s: float
    """By the wall clock."""
    core_s: float
    """Processor seconds of all its processes."""
    peak_bytes: int
    """The most memory that the largest of its processes held."""


def run_command(command: Sequence[str], *, at_most_s: float = float("inf")) -> Outcome:
    """Run a command in silence; it is killed with all its processes when its time is up."""
    watcher = [sys.executable, "-m", "igpt.bench.command", str(at_most_s), *command]
    done = subprocess.run(watcher, check=True, stdout=subprocess.PIPE, text=True)
    return Outcome(**json.loads(done.stdout))


def succeed(command: Sequence[str], *, at_most_s: float) -> Outcome | None:
    """`run_command` on what must not fail; none where its time was up.

    Raises:
        UserError: it ended with another status than 0.
    """
    done = run_command(command, at_most_s=at_most_s)
    if done.span_s >= at_most_s:
        return None
    if done.status:
        raise UserError(f"{shlex.join(command)} ended with status {done.status}: run it alone")
    return done


def _watch(command: Sequence[str], at_most_s: float) -> Outcome:
    start_s = time.perf_counter()
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True)
    alarm = threading.Timer(
        min(at_most_s, threading.TIMEOUT_MAX), os.killpg, (process.pid, signal.SIGKILL)
    )
    alarm.start()
    status = process.wait()
    alarm.cancel()
    span_s = time.perf_counter() - start_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Outcome(status, span_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


if __name__ == "__main__":
    print(json.dumps(asdict(_watch(sys.argv[2:], float(sys.argv[1])))))


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
