"""C++ built by the machine's compiler: once for each machine, kept in the cache with its log.

A library is named by what it was made from and by its own bytes: one that is half written or was
exchanged is built anew. What was built is tried in a process of its own before it is used, since
processors of virtual machines may promise instructions that they lack. A build that failed is not
tried again until `igpt info --build` asks for it. Everything works without, slower.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from igpt.errors import UserError
from igpt.files import FolderLock, write_bytes
from igpt.progress import say
from igpt.system import cache_folder, cpu_flags, others_may_write, processor_flags

BUILD_TIMEOUT_S = 300
TRIAL_TIMEOUT_S = 60
SHARED = ("-std=c++17", "-shared", "-fPIC")

_FAILED = "failed: "

State = Literal["built", "failed", "absent", "refused", "untried"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sources that become one library."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    flags: tuple[str, ...]
    """For the compiler, beside those that make a shared library."""
    for_processor: bool = True
    """Whether it may use all that this processor can do."""
    trial: str = "lambda library: None"
    """Python expression: what to do with the library to see that it works; in its own process."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What became of a part."""

    state: State
    reason: str = ""
    """One line: why there is no library, and what to do; empty where there is one."""
    path: Path | None = None
    """The library."""
    log: Path | None = None
    """What the compiler was asked and answered."""


# `torch.compile` includes both headers and links OpenMP in all that it builds for a CPU.
TORCH_COMPILE = Part(
    name="openmp",
    sources=(Path(__file__).with_name("openmp.cpp"),),
    flags=("-O1", "-fopenmp", f"-I{sysconfig.get_path('include')}"),
    for_processor=False,
    trial="lambda library: library.count_threads()",
)


def compiler() -> str | None:
    """The path of a C++ compiler: `CXX`, else g++, else clang++; none where there is none."""
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


@lru_cache
def built(part: Part) -> Build:
    """The part's library, built now where it has not been tried yet.

    It is loaded from nowhere that others may write: whoever can put a file there would run code
    here.
    """
    return _build(part)


def rebuilt(part: Part) -> Build:
    """Like `built`, also where an earlier build failed."""
    built.cache_clear()
    return _build(part, again=True)


def status(part: Part) -> Build:
    """What an earlier process made of the part; nothing is built."""
    return _build(part, tried=False)


def library(part: Part) -> ctypes.CDLL | None:
    """The part as a loaded library, or none: `built(part).reason` says why."""
    path = built(part).path
    return None if path is None else ctypes.CDLL(str(path))


def _build(part: Part, *, again: bool = False, tried: bool = True) -> Build:
    path = compiler()
    if path is None:
        return Build(state="absent", reason="no C++ compiler is found: install g++ or set CXX")
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if problem := others_may_write(folder):
            return Build(state="refused", reason=f"{problem}: set IGPT_CACHE to one of your own")
        stem = f"native-{part.name}-{_digest(part, path)}"
        if again:
            _forget(folder, stem)
        if found := _kept(folder, stem):
            return found
        return _built_now(part, path, folder, stem) if tried else Build(state="untried")
    except (UserError, OSError) as error:
        return Build(state="failed", reason=f"{error}: IGPT_CACHE names another folder")


def _digest(part: Part, compiler_path: str) -> str:
    """Stands for all that a build depends on; another compiler gets another trial."""
    code = [path.read_bytes() for path in (*part.sources, *part.headers)]
    facts = Path(compiler_path).stat()
    one = (compiler_path, facts.st_size, facts.st_mtime_ns)
    machine = (platform.machine(), sorted(cpu_flags()))
    made_from = repr((code, one, _flags(part), part.trial, *machine))
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def _flags(part: Part) -> tuple[str, ...]:
    return (*part.flags, *processor_flags()) if part.for_processor else part.flags


def _kept(folder: Path, stem: str) -> Build | None:
    """What an earlier build left; none: neither a whole library nor the record of a failure."""
    log = folder / f"{stem}.log"
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if problem := others_may_write(path):
            return Build(state="refused", reason=problem, log=log)
        if path.stem.removeprefix(f"{stem}-") == _content(path.read_bytes()):
            return Build(state="built", path=path, log=log)
        path.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
    told = log.read_text(errors="replace") if log.is_file() else ""
    _, failed, reason = told.rstrip().rpartition(f"\n{_FAILED}")
    return Build(state="failed", reason=reason, log=log) if failed else None


def _forget(folder: Path, stem: str) -> None:
    for path in folder.glob(f"{stem}*"):
        path.unlink(missing_ok=True)


def _content(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _built_now(part: Part, compiler_path: str, folder: Path, stem: str) -> Build:
    """Compile, try and keep the part; of several processes at once, one does."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):  # without locks several build, and the last one stays
            stack.enter_context(FolderLock(folder / f".{stem}", wait=True))
        if done := _kept(folder, stem):
            return done
        say(f"building C++ for this processor, once: {part.name}")
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".native-", dir=folder)))
        made = work / "part.so"
        options = [*_flags(part), *SHARED]
        command = [compiler_path, *options, "-o", str(made), *map(str, part.sources)]
        start_s = time.monotonic()
        problem, output = _ran(command, timeout_s=BUILD_TIMEOUT_S, doing="the C++ compiler")
        if problem is None:
            problem, told = _ran(
                _trial(part, made), timeout_s=TRIAL_TIMEOUT_S, doing="what it built"
            )
            output += told
        log = folder / f"{stem}.log"
        ending = (
            f"{_FAILED}{problem}" if problem else f"built in {time.monotonic() - start_s:.1f} s"
        )
        # The library stands before its log: others look at both without the lock.
        if problem is None:
            data = made.read_bytes()
            target = folder / f"{stem}-{_content(data)}.so"
            write_bytes(target, data)
            target.chmod(0o755)  # whatever the umask: others must not write it
            build = Build(state="built", path=target, log=log)
        else:
            build = Build(state="failed", reason=problem, log=log)
        write_bytes(log, f"$ {' '.join(command)}\n{output}\n{ending}\n".encode())
        shutil.rmtree(folder / f".{stem}", ignore_errors=True)
        return build


def _trial(part: Part, made: Path) -> list[str]:
    code = f"import ctypes; ({part.trial})(ctypes.CDLL({str(made)!r}))"
    return [sys.executable, "-c", code]


def _ran(command: list[str], *, timeout_s: float, doing: str) -> tuple[str | None, str]:
    """Run a command: what went wrong, in one line, and all that it printed."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{doing} took longer than {timeout_s:.0f} s", ""
    except OSError as error:  # of another architecture, or no program at all
        return f"{doing}: {command[0]} cannot be started: {error.strerror}", ""
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return None, output
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    if done.returncode < 0:
        first = f"ended by {signal.Signals(-done.returncode).name}"
    return f"{doing}: {first or f'status {done.returncode}'}", output
