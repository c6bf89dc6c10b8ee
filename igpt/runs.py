"""Files that are seen whole or not at all: atomic writes, hashes, locks, the cache folder."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from igpt.errors import UserError


def cache_folder() -> Path:
    """Where downloads and tables are kept: `IGPT_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("IGPT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "igpt"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; on success it is synced and becomes `path`.

    On any failure the sibling is removed and what stood at `path` before is untouched.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> UserError:
    """The one line for a write that failed, with what to do about it."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UserError(f"cannot write {path}: a file stands in the way: choose another place")
    reason = error.strerror or str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another place" if is_full else "choose another place"
    return UserError(f"cannot write {path}: {reason}: {remedy}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with writing(path) as part:
        part.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys as given."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


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


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder to fill; on success it is synced and renamed to `path`.

    What stood at `path` is replaced only then.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        yield part
        _sync_tree(part)
        part.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
            path.replace(old / "old")
            part.replace(path)
            shutil.rmtree(old)
        else:
            part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb+") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """Holds a folder for this process; the system frees it however the process ends.

    Args:
        folder: what to hold.
        wait: until another process lets go, instead of refusing.
    """

    def __init__(self, folder: Path, *, wait: bool = False) -> None:
        self._path = folder / "lock"
        self._wait = wait
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            UserError: another live process holds it, or no folder can be made there.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise write_error(self._path.parent, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
        except OSError as error:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise UserError(
                f"{self._path.parent} is in use by process {owner}: "
                "wait for it, stop it, or choose another folder"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None
