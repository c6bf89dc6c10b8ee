"""Each question about the system is answered on each kind of system."""

import contextlib
import errno
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import psutil
import pytest

from igpt import system
from igpt.errors import UserError

GIB = 2**30


def lacking(monkeypatch, *names):
    """Take calls away from `os`, as systems do that have none."""
    for name in names:
        monkeypatch.delattr(os, name, raising=False)


@pytest.fixture
def no_groups(tmp_path, monkeypatch):
    """No control groups, whatever this machine has."""
    monkeypatch.setattr(system, "CGROUPS", tmp_path / "none")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A control group tree of the test's own: write(files) and the process's place in it."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    monkeypatch.setattr(system, "PROC", proc)
    monkeypatch.setattr(system, "CGROUPS", root)

    def make(place, files):
        (proc / "self").mkdir(parents=True, exist_ok=True)
        (proc / "self" / "cgroup").write_text(place)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    return make


# --- The command


def test_what_is_started_imports_nothing_from_the_folder_it_is_called_in(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # so that it is put back afterwards
    command = [sys.executable, "-c", "import colorsys"]
    assert subprocess.run(command, check=False).returncode == 9
    monkeypatch.delenv("PYTHONSAFEPATH")
    system.take_no_code_from_here()
    assert subprocess.run(command, check=False).returncode == 0


# --- Cores


def test_cores_are_those_that_the_process_is_bound_to(monkeypatch, no_groups):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert system.cores() == 3


@pytest.mark.parametrize(("counted", "found"), [(8, 8), (None, 1)])
def test_cores_where_a_system_binds_nobody(monkeypatch, no_groups, counted, found):
    lacking(monkeypatch, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert system.cores() == found


@pytest.mark.parametrize(
    ("place", "files", "found"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 1),
        (
            "3:cpu,cpuacct:/x\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("3:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 16),
        ("3:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "nonsense"}, 16),
        ("0::/../..\n", {"cpu.max": "300000 100000"}, 3),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "2000", "cpu,cpuacct/x/cpu.cfs_period_us": "1000"},
            2,
        ),
        ("nonsense\n\n0::/a:b\n", {"a:b/cpu.max": "200000 100000"}, 2),
        ("", {"cpu.max": ""}, 16),
    ],
)
def test_a_containers_share_of_time_limits_the_cores(monkeypatch, groups, place, files, found):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    groups(place, files)
    assert system.cores() == found


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2 bf16", "Features\t: fpu avx2 bf16"])
def test_the_processors_own_words(monkeypatch, tmp_path, line):
    monkeypatch.setattr(system, "PROC", tmp_path)
    assert system.cpu_flags() == frozenset()  # where there is no such file
    (tmp_path / "cpuinfo").write_text(f"processor: 0\n{line}\n\n{line} second\n")
    assert system.cpu_flags() == {"fpu", "avx2", "bf16"}


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """What the kernel says of a processor is written by the test."""
    monkeypatch.setattr(system, "PROC", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "limit", "name"),
    [
        ("avx2 avx512f avx512bw avx512_bf16 amx_bf16", "", "amx"),
        ("avx2 avx512f avx512bw avx512_bf16", "", "avx512-bf16"),
        ("avx2 avx512f avx512bw avx512_bf16 amx_bf16", "avx512", "avx512"),
        ("avx2 avx512f avx512bw avx512_bf16", "avx2", "avx2"),
        ("asimd bf16", "", "neon-bf16"),
        ("asimd", "", "neon"),
    ],
)
def test_the_instruction_set_is_the_widest_that_may_be_used(proc, monkeypatch, flags, limit, name):
    (proc / "cpuinfo").write_text(f"flags: {flags}\n")
    monkeypatch.setenv("IGPT_CPU", limit)
    assert system.instruction_set() == name
    assert ("avx512bw" in system.cpu_flags()) == (name in ("amx", "avx512-bf16", "avx512"))


def test_a_limit_reaches_the_compiler_and_the_libraries(proc, monkeypatch):
    (proc / "cpuinfo").write_text("flags: avx2 avx512f\n")
    monkeypatch.setattr(os, "environ", {})
    system.limit_cpu(None)
    assert os.environ == {}
    assert system.processor_flags() in (("-march=native",), ("-mcpu=native",))
    system.limit_cpu("avx2")
    assert system.processor_flags()[0] == "-march=x86-64-v3"
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sse2", "IGPT_CPU sse2 is unknown: choose one of avx2, avx512"),
        ("avx512", "this processor has no avx512: leave IGPT_CPU and --cpu away"),
    ],
)
def test_a_limit_that_cannot_be_is_one_line(proc, monkeypatch, name, line):
    (proc / "cpuinfo").write_text("flags: avx2\n")
    monkeypatch.setenv("IGPT_CPU", name)
    with pytest.raises(UserError, match=line):
        system.limit_cpu(None)


# --- Memory


@pytest.fixture
def machine_of_16_gib(monkeypatch):
    free = types.SimpleNamespace(available=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


STAT = f"anon 5\ninactive_file {6 * GIB}\nactive_file {GIB}\n"
V1 = {
    "memory/memory.limit_in_bytes": str(8 * GIB),
    "memory/memory.usage_in_bytes": str(8 * GIB),
    "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {3 * GIB}\ntotal_active_file 0\n",
}


@pytest.mark.parametrize(
    ("place", "files", "gib"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"memory.max": "max", "memory.current": str(9 * GIB)}, 16),
        # All but one of 8 GiB is files that were read.
        (
            "0::/\n",
            {"memory.max": str(8 * GIB), "memory.current": str(8 * GIB), "memory.stat": STAT},
            7,
        ),
        ("0::/\n", {"memory.max": str(8 * GIB), "memory.current": str(GIB)}, 7),
        ("0::/\n", {"memory.max": "max", "memory.high": str(GIB), "memory.current": "0"}, 1),
        ("0::/\n", {"memory.max": str(GIB), "memory.current": str(2 * GIB)}, 0),
        ("0::/a/b\n", {"a/memory.max": str(2 * GIB), "a/memory.current": "0"}, 2),
        (
            "0::/\n",
            {"memory.max": str(GIB), "memory.current": str(GIB), "memory.stat": "\nfile\nanon x\n"},
            0,
        ),
        ("4:memory:/docker/x\n", V1, 3),
        ("4:memory:/x\n", {f"memory/x/{name[7:]}": text for name, text in V1.items()}, 3),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 16),
    ],
)
def test_free_memory_of_a_container(machine_of_16_gib, groups, place, files, gib):
    groups(place, files)
    assert system.free_memory_bytes() == gib * GIB


def test_free_memory_where_there_are_no_control_groups(machine_of_16_gib, monkeypatch, tmp_path):
    monkeypatch.setattr(system, "PROC", tmp_path / "none")
    monkeypatch.setattr(system, "CGROUPS", tmp_path / "none")
    assert system.free_memory_bytes() == 16 * GIB


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd", 1024)])
def test_the_peak_elsewhere_is_the_systems_count(platform, unit, monkeypatch, tmp_path):
    import resource

    monkeypatch.setattr(system, "PROC", tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    facts = types.SimpleNamespace(ru_maxrss=1000)
    monkeypatch.setattr(resource, "getrusage", lambda who: facts)
    assert system.peak_bytes() == 1000 * unit


def test_the_peak_on_windows(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "PROC", tmp_path)
    facts = types.SimpleNamespace(peak_wset=77, rss=5)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: facts)
    assert system.peak_bytes() == 77


# --- Allocation


def test_a_c_library_without_glibcs_switches_changes_nothing(monkeypatch):
    for library in (object(), None):
        monkeypatch.setattr(system, "_c_library", lambda library=library: library)
        system.keep_freed_memory()


@pytest.mark.parametrize("how", ["call", "no call", "file system without it"])
def test_a_sparse_file_gets_its_space_and_keeps_its_content(how, tmp_path, monkeypatch):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"head")
        file.truncate(3 * 2**20 + 5)
    before = path.stat().st_blocks
    if how == "no call":
        lacking(monkeypatch, "posix_fallocate")
    if how == "file system without it":

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    system.allocate(path)
    data = path.read_bytes()
    assert data[:4] == b"head" and not any(data[4:]) and len(data) == 3 * 2**20 + 5
    assert path.stat().st_blocks > before


def test_a_full_disk_shows_while_space_is_reserved(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(OSError, match="No space"):
        system.allocate(tmp_path / "a")


def test_pages_are_let_go_where_that_is_known(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(bytes(8192))
    with (tmp_path / "a").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    system.let_go(mapped)
    monkeypatch.delattr(mmap, "MADV_DONTNEED")
    system.let_go(mapped)
    system.let_go(None)
    mapped.close()


# --- Processes


def test_nothing_is_forked_where_torch_or_another_thread_is(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "torch", raising=False)
        assert system.start_method() == "fork"
        without.setattr(sys, "platform", "darwin")
        assert system.start_method() == "spawn"
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert system.start_method() == "spawn"
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert system.start_method() == "spawn"


def test_where_there_are_no_semaphores_it_is_said(monkeypatch):
    import _multiprocessing

    assert system.processes_problem() is None

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(_multiprocessing, "SemLock", refuse)
    assert system.processes_problem() == (
        "this system gives no semaphores (Function not implemented)"
    )


# --- The cache folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of this test's own, no variable that names a cache, and nothing remembered."""
    for name in ("IGPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    system._usable.cache_clear()
    yield tmp_path
    system._usable.cache_clear()


def test_the_cache_folder_is_named_by_variables_else_it_is_the_users(home, monkeypatch):
    if sys.platform == "linux":
        assert system.cache_folder() == home / ".cache" / "igpt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert system.cache_folder() == home / "xdg" / "igpt"
    monkeypatch.setenv("IGPT_CACHE", "/somewhere/else")
    assert system.cache_folder() == Path("/somewhere/else")
    monkeypatch.setenv("IGPT_CACHE", "~/own")
    assert system.cache_folder() == home / "own"


def no_home(monkeypatch, home):
    import pwd

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def file_in_its_place(monkeypatch, home):
    (home / ".cache").write_text("")


def read_only(monkeypatch, home):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).startswith(str(home)) and access(path, mode)
    )


@pytest.mark.parametrize("lack", [no_home, file_in_its_place, read_only], ids=lambda f: f.__name__)
def test_without_a_place_of_its_own_a_temporary_one_is_used_and_named(home, monkeypatch, lack):
    lack(monkeypatch, home)
    with pytest.warns(UserWarning, match="IGPT_CACHE names another"):
        found = system.cache_folder()
    assert found.parent == home / "tmp" and found.stat().st_mode & 0o777 == 0o700
    assert system.cache_folder() == found  # and no second warning


def test_a_temporary_folder_that_somebody_else_made_is_not_used(home, monkeypatch):
    no_home(monkeypatch, home)
    theirs = home / "tmp" / f"igpt-{os.getuid()}"
    theirs.mkdir(mode=0o777)
    theirs.chmod(0o777)
    with pytest.warns(UserWarning, match="no home folder"):
        found = system.cache_folder()
    assert found != theirs and found.parent == home / "tmp"


def test_libraries_without_a_home_keep_their_things_in_our_cache(home, monkeypatch):
    names = ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "HF_HOME")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    system.keep_caches_together()
    assert [name in os.environ for name in names] == [True, False, False]
    no_home(monkeypatch, home)
    with contextlib.suppress(UserWarning):
        system.keep_caches_together()
    assert all(os.environ.get(name) for name in names[:1])


def test_what_others_may_write_is_told_from_ones_own(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    assert system.others_may_write(tmp_path) is None
    tmp_path.chmod(0o775)
    assert "chmod go-w" in system.others_may_write(tmp_path)
    lacking(monkeypatch, "geteuid")
    assert system.others_may_write(tmp_path) is None
