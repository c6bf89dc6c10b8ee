"""What igpt keeps in its cache folder: how much of each kind, and how it is cleared.

Everything there can be made or fetched again. Features and packed copies grow with use, so they are
bounded: what was used longest ago goes first. What is fetched from elsewhere has a bound of its own
(`igpt.images.sources.remote`).
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from igpt.errors import UserError
from igpt.files import FolderLock
from igpt.system import cache_folder

# Kind: the names of its entries in the cache folder.
KINDS = {
    "features": ("features/*",),
    "packed": ("packed/*",),
    "finetuned": ("finetuned/*",),
    "downloads": ("downloads/*", "huggingface"),
    "remote": ("remote/*",),
    "code": ("native-*", ".native-*", "inductor"),
    "tables": ("tables/*",),
    "verified": ("verified/*",),
    "rows": ("rows/*",),
}
GROWING = ("features", "packed", "rows")
# Of features and packed copies together; `igpt cache --at-most-gb` chooses another size once.
LIMIT_BYTES = 20 * 10**9
# What was used so recently may be in use: it stays unless a limit is asked for by name.
RECENT_S = 24 * 3600


def entries(kind: str) -> Iterator[Path]:
    """The files and folders of a kind that can be removed one by one."""
    folder = cache_folder()
    for pattern in KINDS[kind]:
        yield from sorted(folder.glob(pattern))


def overview() -> dict[str, tuple[int, int]]:
    """Files and bytes of each kind, and of what else lies there (`other`)."""
    found = {kind: _size(list(entries(kind))) for kind in KINDS}
    known = {path.relative_to(cache_folder()).parts[0] for kind in KINDS for path in entries(kind)}
    folder = cache_folder()
    rest = [path for path in folder.iterdir() if path.name not in known] if folder.is_dir() else []
    return {**found, "other": _size(rest)}


def clear(kinds: Sequence[str]) -> int:
    """Remove what is kept of some kinds, or of `all`; bytes that were removed."""
    chosen = KINDS if "all" in kinds else kinds
    return sum(_remove(path) for kind in chosen for path in entries(kind))


def checked_limit(gigabytes: float) -> int:
    """A limit in bytes.

    Raises:
        UserError: it is below 0 or no number.
    """
    if not gigabytes >= 0:
        raise UserError(f"--at-most-gb {gigabytes} is not possible: choose 0 or more")
    return int(min(gigabytes, 1e9) * 1e9)


def used(path: Path) -> None:
    """Note that an entry was used now, and make room where new ones have taken too much."""
    with contextlib.suppress(OSError):
        os.utime(path)
    trim(LIMIT_BYTES, unused_s=RECENT_S)


def trim(limit_bytes: int, *, unused_s: float = 0) -> int:
    """Remove features and packed copies, oldest use first, until they fit; bytes removed.

    Args:
        limit_bytes: what they may take together.
        unused_s: what was used within so many seconds stays.
    """
    before_s = time.time() - unused_s
    found = []
    for kind in GROWING:
        for path in entries(kind):
            with contextlib.suppress(OSError):  # another process removed it
                found.append((_last_used_s(path), _size([path])[1], path))
    total, removed = sum(n_bytes for _, n_bytes, _ in found), 0
    for used_s, _, path in sorted(found):
        if total - removed <= limit_bytes or used_s > before_s:
            break
        removed += _remove(path)
    return removed


def _last_used_s(path: Path) -> float:
    """When `used` was called last, or the entry was written."""
    return path.stat().st_mtime


def _size(paths: Sequence[Path]) -> tuple[int, int]:
    """Files and bytes of these and all below them; links are not followed."""
    n_files = n_bytes = 0
    for path in paths:
        inside = [Path(root, name) for root, _, names in os.walk(path) for name in names]
        for file in inside or ([path] if not path.is_dir() else []):
            with contextlib.suppress(OSError):
                n_bytes += file.lstat().st_size
                n_files += 1
    return n_files, n_bytes


def _remove(path: Path) -> int:
    """Bytes freed; a folder that another process holds stays."""
    n_bytes = _size([path])[1]
    try:
        if path.is_dir() and not path.is_symlink():
            with FolderLock(path) if (path / "lock").exists() else contextlib.nullcontext():
                shutil.rmtree(path)
        else:
            path.unlink()
    except (OSError, UserError):
        return 0  # in use, or gone already
    return n_bytes
