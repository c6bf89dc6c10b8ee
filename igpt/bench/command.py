"""Seconds and peak memory of a whole command, in processes of its own.

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
from collections.abc import Sequence
from dataclasses import asdict, dataclass

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
