"""Files and folders that are seen whole or not at all: atomic writes, locks, hashes, JSON, caches.

What is unusual here: a folder that `writing_folder` made lists its own files (`LIST`), and a later
write removes only what such a list proves to be ours. A temporary sibling is locked for as long as
its writer lives, so that what killed processes left is told from what others are still writing; it
is cleared, or put back, by `settle`.
"""

import contextlib
import ctypes
import errno
import fnmatch
import functools
import hashlib
import json
import math
import numbers
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from igpt.errors import UserError
from igpt.system import cache_folder as cache_folder

with contextlib.suppress(ImportError):  # Windows, which is refused in one line before it is used
    import fcntl

# In each folder that igpt writes whole: the size of every file, and of small ones the sha256.
LIST = ".igpt.json"
_SMALL_BYTES = 2**22
IS_POINTER = "a Git LFS pointer, not the file itself: run git lfs pull"
POINTER_START = b"version https://git-lfs.github.com/spec/"
# Of a name of a temporary sibling; the rest is a dot, eight digits and an ending.
_STEM_BYTES = 200
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}\.(part|old)", re.DOTALL)
# What file systems answer that lack a call: some FUSE mounts, NFS, Lustre, FAT.
_LACKING = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}
_REFUSED = {errno.EPERM, errno.EACCES}


# --- Errors and warnings


def write_error(path: Path, error: OSError) -> UserError:
    """The one line for a write that failed, with what to do about it."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UserError(f"cannot write {path}: a file stands in the way: choose another place")
    reason = error.strerror or str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another place" if is_full else "choose another place"
    return UserError(f"cannot write {path}: {reason}: {remedy}")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UserError(f"cannot write {path}: a name holds no null byte") from error


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


@contextlib.contextmanager
def kept_if_possible(what: str) -> Iterator[None]:
    """Keep a result beside what is shown; where that cannot be, it is said and the work goes on."""
    try:
        yield
    except UserError as error:
        warnings.warn(f"{what} not saved: {error}", stacklevel=3)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where its file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        _without_sync(error, folder)


def sync_file(handle: int, path: Path) -> None:
    """Make an open file survive a power cut, where its file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        _without_sync(error, path.parent)


def _without_sync(error: OSError, folder: Path) -> None:
    if error.errno not in _LACKING | _REFUSED:
        raise error
    _warn_once(
        f"{folder} cannot be synced ({error.strerror}): what is written there may be lost in a "
        "power cut"
    )


# --- Temporary siblings


def _stem(name: str) -> str:
    """What the temporary siblings of a name begin with; a long one is cut, with a hash for it."""
    raw = os.fsencode(name)
    if len(raw) <= _STEM_BYTES:
        return name
    return f"{os.fsdecode(raw[: _STEM_BYTES - 20])}~{hashlib.sha256(raw).hexdigest()[:16]}"


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{_stem(path.name)}.{os.urandom(4).hex()}.{kind}")


def _lock(handle: int, *, wait: bool = False) -> bool | None:
    """Take the lock of an open file; False: another holds it, None: the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        return None
    return True


@contextlib.contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new empty sibling of `path`, with the modes of the umask, locked while it is written."""
    while True:
        part = _sibling(path, "part")
        if folder:
            part.mkdir()
            handle = os.open(part, os.O_RDONLY)
        else:
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Who clears leftovers may have come between; then it is not ours any longer.
        if _lock(handle) is not False and part.exists():
            break
        os.close(handle)
    try:
        yield part
    finally:
        os.close(handle)
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Whether no process that lives writes there."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _lock(handle) is True
    finally:
        os.close(handle)


def settle(path: Path, *, kind: Collection[str] = ()) -> None:
    """Put back what a process that was killed left half done at `path`, and clear what it left.

    Args:
        path: of a file or folder that is about to be read or written.
        kind: as for `writing_folder`.
    """
    place = Path(os.path.realpath(path))
    for left, stem in _abandoned(place.parent):
        if stem == _stem(place.name):
            _settle(left, place, kind)


def settle_below(folder: Path, *, kind: Collection[str] = ()) -> None:
    """`settle` everything in a folder."""
    for left, stem in _abandoned(folder):
        _settle(left, folder / stem, kind)


def _abandoned(parent: Path) -> Iterator[tuple[Path, str]]:
    """What killed processes left in a folder, and the stem of what each was to be."""
    try:
        names = sorted(name for name in os.listdir(parent) if name.startswith("."))
    except OSError:
        return
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match and _is_abandoned(parent / name):
            yield parent / name, match["stem"]


def _settle(left: Path, place: Path, kind: Collection[str]) -> None:
    with contextlib.suppress(OSError):  # where nothing may be written, it stays as it is
        if left.suffix == ".part":
            _remove(left)
        elif place.exists():
            _discard(left, place, kind)
        else:
            left.rename(place)


@contextlib.contextmanager
def private_folder(prefix: str, *, base: Path | None = None) -> Iterator[Path]:
    """A folder that only this user may read, for what this process needs while it lives.

    It is removed at the end; what a process that was killed left is removed at the next start.

    Args:
        prefix: of its name.
        base: where it stands; none: in the system's folder for temporary files.
    """
    base = base or Path(tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob(f"{prefix}-*"):
        with contextlib.suppress(OSError):
            if left.stat().st_uid == os.getuid() and _is_abandoned(left):
                _remove(left)
    with _told(base):
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=base))
        handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle)
        yield folder
    finally:
        os.close(handle)
        _remove(folder)


# --- Files


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; on success it is synced and becomes `path`.

    On any failure the sibling is removed and what stood at `path` before is untouched. A link is
    followed.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    with _told(path):
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        settle(place)
        with _temporary(place, folder=False) as part:
            yield part
            with part.open("rb+") as file:
                sync_file(file.fileno(), place)
            part.replace(place)
            sync_folder(place.parent)


def try_place(path: Path) -> None:
    """Find out before the work whether a file or folder can be written at `path`.

    Nothing is left there, and what stands there is untouched.

    Raises:
        UserError: it cannot, and why.
    """
    made: list[Path] = []
    try:
        with _told(path):
            place = Path(os.path.realpath(path))
            missing = [p for p in reversed(place.parents) if not p.exists()]
            for folder in missing:
                folder.mkdir(exist_ok=True)
                made.append(folder)
            with contextlib.suppress(FileNotFoundError):
                place.lstat()  # a name may be too long, or not be one at all
            with _temporary(place, folder=False):
                pass
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_room(place: Path, n_bytes: int, what: str) -> None:
    """Find out before the work whether the disk of a file or folder has room for what it gets.

    Args:
        place: where it will lie; it need not be there yet.
        n_bytes: about how much.
        what: takes them, in words.

    Raises:
        UserError: it has not.
    """
    own = Path(os.path.realpath(place))
    there = next(p for p in (own, *own.parents) if p.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError:  # a disk that does not tell is tried
        return
    if free < n_bytes:
        raise UserError(
            f"{place} has {free / 1e9:.3g} GB free and {what} take about {n_bytes / 1e9:.3g} GB: "
            "make room, or choose a larger disk"
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with writing(path) as part:
        part.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys as given; what is no number becomes null."""
    write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def plain(value: Any) -> Any:
    """A value as JSON can say it: numpy's numbers as Python's, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int):
        number = float(value) if not isinstance(value, numbers.Integral) else int(value)
        return number if math.isfinite(number) else None
    return value


def read_json(path: Path) -> Any:
    """The JSON document at `path`.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore or delete it") from error


def refuse_pointer(path: Path) -> None:
    """Say so where a file is what Git LFS left in its place; any other, or none, passes.

    Raises:
        UserError: it is a pointer.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(POINTER_START)) == POINTER_START:
            raise UserError(f"{path}: {IS_POINTER}")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Folders


@contextlib.contextmanager
def writing_folder(
    path: Path, *, kind: Collection[str] = (), keep_others: bool = False
) -> Iterator[Path]:
    """A temporary sibling folder to fill; on success it is synced and becomes `path`.

    What stood at `path` is exchanged for it in one step. Of that only what igpt wrote is removed:
    what the folder's own list proves to be ours, and the files of its kind.

    Args:
        path: of the folder, whose files all lie in it directly. A link is followed.
        kind: patterns of names that make up such a folder, whoever wrote them; the caller has
            checked that what stands there is of this kind.
        keep_others: what else lies there stays, and wins over a file of ours of that name;
            otherwise it makes the write refused.

    Raises:
        UserError: the disk is full, the place cannot be written, or holds what is not ours.
    """
    with _told(path):
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        settle(place, kind=kind)
        if not keep_others:
            check_only_ours(path, kind=kind)
        with _temporary(place, folder=True) as part:
            yield part
            others = others_in(place, kind=kind)
            for name in others:
                (part / name).unlink(missing_ok=True)
            claim(part, *(file.name for file in part.iterdir()))
            for file in part.iterdir():
                with file.open("rb+") as opened:
                    sync_file(opened.fileno(), place)
            sync_folder(part)
            _put(part, place, kind)
            sync_folder(place.parent)


def _put(part: Path, place: Path, kind: Collection[str]) -> None:
    """Give a whole folder its name."""
    if not place.exists():
        part.rename(place)
    elif not any(place.iterdir()):
        # An empty folder may be a mount, or the one that somebody's shell is in: it stays.
        for file in sorted(part.iterdir(), key=lambda file: file.name in ("config.json", LIST)):
            file.rename(place / file.name)
    else:
        with _locked(place):
            old = _sibling(place, "old")
            part.rename(old)
            if not _exchange(old, place):
                _swap(old, place)
            _discard(old, place, kind)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody settles the folder meanwhile, whatever its name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _swap(new: Path, place: Path) -> None:
    """Exchange two folders in three steps; `settle` ends what is cut off between them."""
    old = _sibling(place, "old")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    old.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    at_here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE; on macOS RENAME_SWAP
    if hasattr(system, "renameat2"):
        failed = system.renameat2(at_here, names[0], at_here, names[1], exchange)
    elif hasattr(system, "renamex_np"):
        failed = system.renamex_np(names[0], names[1], exchange)
    else:
        return False
    number = ctypes.get_errno() if failed else 0
    if failed and number not in _LACKING:
        raise OSError(number, os.strerror(number), str(other))
    return not failed


def _discard(old: Path, place: Path, kind: Collection[str]) -> None:
    """Remove our files of a folder that was replaced; what else it holds goes to `place`."""
    others = others_in(old, kind=kind)
    for name in others:
        if not (place / name).exists():
            (old / name).rename(place / name)
    for file in list(old.iterdir()):
        if file.name not in others:
            _remove(file)
    if not any(old.iterdir()):
        old.rmdir()


def claim(folder: Path, *names: str) -> None:
    """Enter files of a folder in its list, so that they are known to be ours."""
    listed = {**listed_in(folder), **{name: _state(folder / name) for name in names}}
    listed.pop(LIST, None)
    data = json.dumps({"files": listed}, indent=2, sort_keys=True) + "\n"
    write_bytes(folder / LIST, data.encode())


def listed_in(folder: Path) -> dict[str, list[Any]]:
    """The files that a folder lists as written by igpt: size and, of small ones, sha256."""
    try:
        found = json.loads((folder / LIST).read_bytes())["files"]
        return dict(found)
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _state(path: Path) -> list[Any]:
    size = path.stat().st_size
    return [size, sha256_of(path) if size <= _SMALL_BYTES else None]


def others_in(folder: Path, *, kind: Collection[str] = ()) -> list[str]:
    """The names in a folder that igpt cannot prove to have written, in order.

    Args:
        folder: any; one that is not there holds none.
        kind: as for `writing_folder`.
    """
    if not folder.is_dir():
        return []
    listed = listed_in(folder)

    def is_ours(path: Path) -> bool:
        if path.is_dir() or path.is_symlink():
            return False
        of_kind = path.name == LIST or any(fnmatch.fnmatch(path.name, p) for p in kind)
        return of_kind or (path.name in listed and listed[path.name] == _state(path))

    return sorted(path.name for path in folder.iterdir() if not is_ours(path))


def check_only_ours(path: Path, *, kind: Collection[str] = ()) -> None:
    """Refuse a place to write a folder at, where anything but a folder of ours stands.

    Raises:
        UserError: it is a file, or holds what igpt did not write.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose a folder")
    if others := others_in(path, kind=kind):
        raise UserError(
            f"{path} is not empty: it holds {others[0]}, which igpt did not write: move it away, "
            "or choose another place"
        )


class FolderLock:
    """Holds a folder for this process; the system frees it however the process ends.

    Where the file system has no locks, what the lock says of its holder is believed on this
    machine, and elsewhere a warning must do.

    Args:
        folder: what to hold.
        wait: until another process lets go, instead of refusing.
    """

    def __init__(self, folder: Path, *, wait: bool = False) -> None:
        self._folder = folder
        self._path = folder / "lock"
        self._wait = wait
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            UserError: another live process holds it, or no folder can be made there.
        """
        with _told(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        held = _lock(handle, wait=self._wait)
        process, host = _holder(handle)
        if held is False or (held is None and _lives(process, host)):
            os.close(handle)
            raise UserError(
                f"{self._folder} is in use by process {process or 'unknown'}"
                f"{f' on {host}' if host else ''}: wait for it, stop it, or choose another folder"
            )
        with contextlib.suppress(OSError):  # a full disk, where the lock itself holds
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        self._handle = handle
        if held is None:
            _warn_once(
                f"the file system of {self._folder} has no locks: see to it that no other process "
                "writes there at the same time"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._handle is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle = None


def _holder(handle: int) -> tuple[str, str]:
    """The process and the machine that a lock names; empty where it names none."""
    process, _, host = os.pread(handle, 300, 0).decode(errors="replace").strip().partition(" ")
    return process, host


def _lives(process: str, host: str) -> bool:
    """Whether a process of this machine, other than this one, is alive."""
    if host != socket.gethostname() or not process.isdigit() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
