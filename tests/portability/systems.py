"""What other systems lack, taken away from this one: `sitecustomize` of a process calls `pretend`.

Only igpt's own calls are refused where other packages ask too: they know where they run.
"""

import builtins
import ctypes
import errno
import importlib.abc
import importlib.util
import io
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

EXTRAS = (
    *("pyarrow", "gradio", "gradio_client", "onnx", "onnxruntime", "onnxscript", "wandb"),
    *("tensorboard", "transformers", "huggingface_hub", "zstandard", "pillow_heif"),
)


def pretend(system):
    """Make this process believe that it runs on another system."""
    no_fork_beside_torch()
    {
        "macos": macos,
        "wsl": wsl,
        "slim": slim,
        "nocompiler": lambda: None,  # its PATH says it all
        "sandbox": sandbox,
        "base": base,
        "windows": windows,
    }[system]()


class _After(importlib.abc.MetaPathFinder):
    """Changes a module when it has been imported."""

    def __init__(self, wanted, change):
        self.wanted, self.change = wanted, change

    def find_spec(self, name, path=None, target=None):
        if name != self.wanted:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


def after(name, change):
    sys.meta_path.insert(0, _After(name, change))


def asked_by_igpt():
    frame = sys._getframe(2)
    while frame and frame.f_globals.get("__name__") in ("pathlib", "ctypes", __name__):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("igpt.")


def no_fork_beside_torch():
    fork = os.fork

    def checked():
        if "torch" in sys.modules:
            raise AssertionError("forked where torch has threads")
        return fork()

    os.fork = checked


def no_files(*starts, to=None):
    """Files that igpt does not find, or finds elsewhere: a table of beginnings of names."""
    opened = io.open

    def fake(file, *args, **kwargs):
        if isinstance(file, str | os.PathLike) and asked_by_igpt():
            name = os.fspath(file)
            for start in starts:
                if str(name).startswith(start):
                    if to is None:
                        raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
                    file = to + str(name)
        return opened(file, *args, **kwargs)

    io.open = builtins.open = fake


def no_c_calls(*names):
    class Library(ctypes.CDLL):
        def __getattr__(self, name):
            if name in names and asked_by_igpt():
                raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
            return super().__getattr__(name)

    ctypes.CDLL = Library


def refuse(module, name, number):
    def refused(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    setattr(module, name, refused)


def macos():
    del os.sched_getaffinity
    del os.posix_fallocate
    no_files("/proc/", "/sys/")
    no_c_calls("mallopt", "malloc_trim", "renameat2")

    class Elsewhere:
        platform = "darwin"

        def __getattr__(self, name):
            return getattr(sys, name)

    after("igpt.system", lambda module: setattr(module, "sys", Elsewhere()))


def windows():
    sys.platform = "win32"
    for name in ("fcntl", "pwd", "grp", "resource", "termios"):
        sys.modules[name] = None


def wsl():
    """A Windows drive within WSL: no modes, no locks, no reserved space, no synced folders."""
    import fcntl

    refuse(fcntl, "flock", errno.ENOLCK)
    refuse(os, "posix_fallocate", errno.EOPNOTSUPP)
    refuse(os, "chmod", errno.EPERM)
    refuse(os, "symlink", errno.EPERM)
    refuse(os, "link", errno.EPERM)
    no_c_calls("renameat2")
    no_files("/sys/fs/cgroup", "/proc/self/cgroup", "/proc/self/clear_refs")
    fsync = os.fsync

    def files_only(handle):
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    os.fsync = files_only


def nobody():
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    pwd.getpwuid = unknown


def slim():
    """A container of 2 GiB, nearly all of it files that were read, and one core; a user unknown."""
    nobody()
    fake = Path(os.environ["FAKE_ROOT"])
    no_files("/sys/fs/cgroup", "/proc/self/cgroup", to=str(fake))


def sandbox():
    """No semaphores (no /dev/shm), one place to write, a home that is not there."""
    import _multiprocessing

    class NoSemaphores:
        SEM_VALUE_MAX = _multiprocessing.SemLock.SEM_VALUE_MAX

        def __init__(self, *args, **kwargs):
            raise OSError(errno.ENOSYS, "Function not implemented")

    _multiprocessing.SemLock = NoSemaphores
    access = os.access
    os.access = lambda path, mode, **more: (
        str(path).startswith(os.environ["TMPDIR"]) and access(path, mode, **more)
    )
    refuse(os, "posix_fallocate", errno.EOPNOTSUPP)
    no_files("/sys/fs/cgroup", "/proc/self/clear_refs")


def base():
    class Without(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name.partition(".")[0] in EXTRAS:
                return None
            return super().find_spec(name, path, target)

    sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
