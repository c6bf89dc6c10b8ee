"""What differs between systems: cores, memory, allocation, processes and the cache folder.

Each question has one function here, which asks the system for what it has and takes the next best
where that is lacking. Nothing else in the package asks what system it runs on.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import os
import platform
import re
import shlex
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from igpt.errors import UserError

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


# --- The command


def own_command() -> str:
    """What this process was told to do, for the record: `igpt ...`; a program of others' is not."""
    program, *rest = sys.argv or [""]
    is_ours = Path(program).stem in ("igpt", "__main__")
    return shlex.join(["igpt", *rest]) if is_ours else "Python"


def refuse_windows() -> None:
    """End before the work on Windows itself, which lacks this package's locks and signals.

    Raises:
        UserError: it is that.
    """
    if sys.platform == "win32":
        raise UserError("igpt runs on Linux and macOS: on Windows, install and call it within WSL")


def refuse_lost_folder() -> None:
    """End before the work where the folder that this process is in was removed.

    Relative paths lead nowhere there, and Intel's library of matrix products ends the process.

    Raises:
        UserError: it was.
    """
    try:
        Path.cwd()
    except OSError:
        raise UserError("the folder that igpt was called in is gone: change to another") from None


def take_no_code_from_here() -> None:
    """Let the Python processes that are started import nothing from the folder they are called in.

    Workers and trials would: a `struct.py` beside somebody's photos would run.
    """
    if Path.cwd() != Path(__file__).parent.parent:  # in a clone that is not installed, igpt itself
        os.environ.setdefault("PYTHONSAFEPATH", "1")


# --- Cores


def cores() -> int:
    """Cores that this process may use: those it is bound to, and the container's share of time."""
    if hasattr(os, "sched_getaffinity"):
        n_cores = len(os.sched_getaffinity(0))
    else:
        n_cores = os.cpu_count() or 1
    return max(1, min([n_cores, *(math.ceil(quota) for quota in _core_quotas())]))


def _core_quotas() -> Iterator[float]:
    """Cores' worth of time that each control group above this process grants it."""
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (group / "cpu.max").read_text().split()  # "max 100000" where free
            yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            granted = int((group / "cpu.cfs_quota_us").read_text())  # -1 where free
            if granted > 0:
                yield granted / int((group / "cpu.cfs_period_us").read_text())


def cpu_flags() -> frozenset[str]:
    """What this processor says that it can do, by the kernel's names; empty where unknown.

    Under `IGPT_CPU` without what lies above that set.
    """
    hidden = _HIDDEN.get(os.environ.get("IGPT_CPU", ""))
    with contextlib.suppress(OSError):
        for line in (PROC / "cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags = line.partition(":")[2].split()
                return frozenset(flag for flag in flags if not (hidden and hidden.match(flag)))
    return frozenset()


def processor_name() -> str:
    """The model of this processor, as people name it."""
    with contextlib.suppress(OSError):
        for line in (PROC / "cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instruction_set() -> str:
    """The widest of this processor's that our code has a way for, as `benchmarks/` names them."""
    flags = cpu_flags()
    for flag, name in _SETS.items():
        if flag in flags:
            return name
    return platform.machine().lower()


_SETS = {
    "amx_bf16": "amx",
    "avx512_bf16": "avx512-bf16",
    "avx512f": "avx512",
    "avx2": "avx2",
    "bf16": "neon-bf16",
    "asimd": "neon",
}

# What `IGPT_CPU` hides of a processor, and how compilers and libraries name what is left.
_HIDDEN = {"avx2": re.compile("avx512|amx"), "avx512": re.compile("avx512(?!(f|bw|cd|dq|vl)$)|amx")}
_MARCH = {"avx2": "x86-64-v3", "avx512": "x86-64-v4"}
_ONEDNN = {"avx2": "AVX2", "avx512": "AVX512_CORE"}


def limit_cpu(name: str | None) -> None:
    """Use no more of the processor than a set of instructions, here and in all that is started.

    For trials of other machines, and for one whose flags promise too much. Counts before torch is
    imported.

    Args:
        name: avx2 or avx512 (without bfloat16); none: what `IGPT_CPU` says, if anything.

    Raises:
        UserError: there is no such set, or this processor lacks it.
    """
    name = name or os.environ.get("IGPT_CPU")
    if not name:
        return
    needed = {"avx2": "avx2", "avx512": "avx512f"}
    if name not in needed:
        raise UserError(f"IGPT_CPU {name} is unknown: choose one of {', '.join(needed)}")
    if needed[name] not in cpu_flags():
        raise UserError(f"this processor has no {name}: leave IGPT_CPU and --cpu away")
    os.environ["IGPT_CPU"] = name
    os.environ["ATEN_CPU_CAPABILITY"] = name
    os.environ["TORCHINDUCTOR_CPP_MARCH"] = _MARCH[name]
    os.environ["ONEDNN_MAX_CPU_ISA"] = _ONEDNN[name]
    os.environ["MKL_ENABLE_INSTRUCTIONS"] = name.upper()


def processor_flags() -> tuple[str, ...]:
    """How a compiler is told to build for this processor, as far as it may be used."""
    if march := _MARCH.get(os.environ.get("IGPT_CPU", "")):
        return (f"-march={march}", "-mtune=native")
    # `-march=native` does not choose the processor of every compiler for ARM, `-mcpu=native` does.
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return ("-march=native",) if is_x86 else ("-mcpu=native",)


# --- Memory


def free_memory_bytes() -> int:
    """Memory that new work may take: of the machine, or of the container where that is less."""
    import psutil

    return max(0, min([int(psutil.virtual_memory().available), *_group_memory()]))


def _group_memory() -> Iterator[int]:
    """Bytes that each control group above this process still grants it.

    A group is charged for files that were read, too; the kernel takes that memory back at once.
    """
    for group in _groups("memory"):
        limits = [
            _number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        ]
        used = [_number(group / name) for name in ("memory.current", "memory.usage_in_bytes")]
        if not any(found is not None for found in limits):
            continue
        limit = min(found for found in limits if found is not None)
        taken = max((found for found in used if found is not None), default=0)
        yield limit - max(0, taken - _file_cache(group))


def _file_cache(group: Path) -> int:
    """Bytes of files in memory, of a group and those below it."""
    try:
        text = (group / "memory.stat").read_text(errors="replace")
    except OSError:
        return 0
    stat = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", text)}
    kinds = ("inactive_file", "active_file")
    return sum(stat.get(f"total_{kind}", stat.get(kind, 0)) for kind in kinds)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" where there is no limit
        return None


def _groups(controller: str) -> Iterator[Path]:
    """The control groups of this process, its own first, of both versions of the interface."""
    try:
        text = (PROC / "self" / "cgroup").read_text(errors="replace")
    except OSError:
        text = "0::/"
    for controllers, place in re.findall("^[0-9]+:(.*?):(.*)$", text, re.MULTILINE):
        if controllers and controller not in controllers.split(","):
            continue
        # Within a container the place may be as seen from outside: then only the root is there.
        inside = [part for part in place.split("/") if part not in ("", "..")]
        # Where one folder serves several controllers, its name for one alone is a link, or absent.
        for root in sorted({CGROUPS / controllers, CGROUPS / (controllers and controller)}):
            for depth in range(len(inside), -1, -1):
                yield root.joinpath(*inside[:depth])


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    # First the kernel's own count: that of `getrusage` begins with that of the parent process.
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    import psutil

    facts = psutil.Process().memory_info()
    if hasattr(facts, "peak_wset"):  # Windows
        return int(facts.peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


# --- Allocation


def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such name
        return None


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor of that size.

    By default glibc lends each large tensor anew, page by page and filled with zeros: a fifth of a
    training step's time. Other C libraries have no such switch.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    with contextlib.suppress(AttributeError):
        mallopt = _c_library().mallopt  # type: ignore[union-attr]
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def allocate(path: Path) -> None:
    """Give a file all the disk space that its size promises.

    A full disk shows here, and not as SIGBUS when a memory map of the file is written to.

    Raises:
        OSError: there is not so much space.
    """
    with path.open("rb+") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if not _is_lacking(error):
                    raise
        for start in range(0, size, 2**20):
            file.seek(start)
            data = file.read(2**20)
            file.seek(start)
            file.write(data)


def _is_lacking(error: OSError) -> bool:
    """Whether a file system answered that it does not know a call."""
    import errno

    return error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def let_go(mapped: object) -> None:
    """Unmap the pages of a memory map that were read in passing, where the system can."""
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED)


# --- Processes


def start_method() -> str:
    """How processes start here: forked where that is safe, which is at once, else anew.

    A fork copies one thread only: a lock that another one held, torch's own among them, would stay
    held for ever. On macOS the system's libraries break in forks.
    """
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return "fork" if alone and sys.platform == "linux" else "spawn"


def processes_problem() -> str | None:
    """Why work cannot be shared among processes here, in one line; none: it can."""
    import multiprocessing

    try:
        multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(":")[0]
        return f"this system gives no semaphores ({reason})"
    return None


# --- The cache folder


def cache_folder() -> Path:
    """Where downloads, tables and built code are kept: `IGPT_CACHE`, else the user's own place.

    Where that cannot be made, a folder in the temporary place serves, which a warning says once.
    """
    chosen = os.environ.get("IGPT_CACHE")
    if chosen and not chosen.startswith("~"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    # Read anew at each call: tests and notebooks change it.
    return _usable(chosen or (str(Path(base) / "igpt") if base else None), os.environ.get("HOME"))


@functools.cache
def _usable(place: str | None, _home: str | None) -> Path:
    import platformdirs

    try:
        path = at_home(place or platformdirs.user_cache_dir("igpt", appauthor=False))
    except RuntimeError:  # nobody knows the user's home
        path = Path("~")
    problem = _unusable(path)
    if problem is None:
        return path
    stand_in = _own_temporary_folder()
    warnings.warn(
        f"no cache folder of its own ({problem}): {stand_in} is used; IGPT_CACHE names another",
        stacklevel=2,
    )
    return stand_in


def as_text(place: str | os.PathLike[str]) -> str:
    """What a user named, a path or else, as text.

    Raises:
        UserError: it is no name, or an empty one, which would be the working folder.
    """
    if not isinstance(place, str | os.PathLike):
        raise UserError(f"{type(place).__name__} is no path: name a file or a folder")
    if not str(place):
        raise UserError("an empty name is no path: name a file or a folder")
    return str(place)


def at_home(place: str | os.PathLike[str]) -> Path:
    """The path that a user names: `~` is home, and stays where nobody knows whose it is.

    Raises:
        UserError: no name is given, which would be the working folder, or nothing can be there.
    """
    as_text(place)
    path = Path(os.path.expanduser(place))  # noqa: PTH111 - pathlib fails where nobody knows it
    try:
        path.exists()
    except OSError as error:  # too long, or in a folder that may not be read
        raise UserError(f"cannot look at {place}: {error.strerror}: check the path") from error
    return path


def _unusable(path: Path) -> str | None:
    """Why a folder cannot be made or written; none: it can."""
    if str(path).startswith("~"):
        return "there is no home folder"
    there = next(part for part in (path, *path.parents) if os.path.lexists(part))
    if not there.is_dir():
        return f"{there} is a file" if there.exists() else f"{there} leads nowhere"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} may not be written"
    return None


def _own_temporary_folder() -> Path:
    """The same folder at every start, if nobody else has taken its name."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"igpt-{user}"
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        if others_may_write(path) is None and not path.is_symlink():
            return path
    return Path(tempfile.mkdtemp(prefix="igpt-"))


def others_may_write(path: Path) -> str | None:
    """Why no code may be loaded from a file or folder; none: it is ours alone."""
    if not hasattr(os, "geteuid"):
        return None  # Windows: a user's folders are the user's
    facts = path.stat()
    if facts.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to another user, and no code is loaded from there"
    if facts.st_mode & 0o022:
        return f"{path} may be written by others, and no code is loaded from there (chmod go-w)"
    return None


def keep_caches_together() -> None:
    """Let other libraries keep things in our cache folder where their own place is none.

    PyTorch's compiled code always: its own place is a temporary one, and a second run of the same
    sizes starts in seconds.
    """
    folder = cache_folder()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    if _unusable(at_home("~/.config/matplotlib")):
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    if _unusable(at_home("~/.cache/huggingface")):
        os.environ.setdefault("HF_HOME", str(folder / "huggingface"))
