"""What is bad, and what then: one rule for every command that takes many images.

A file that counts (`igpt.images.sources.names`) but cannot be used is left out, counted and named
with its reason; a job stops only when more than `max_bad` of the images are lost in this way (of a
few images, at the default share: more than one). Where none is left, or the only one cannot be
used, its reason is the error. Reasons are few and short, so that they can be counted; what was seen
in the file stands in them.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from igpt.errors import UserError
from igpt.files import IS_POINTER, POINTER_START

MAX_BAD = 0.1
"""Default share of images that may be left out."""

NO_FILE = "there is no such file"
DEAD_LINK = "a link to nothing"
LINK_LOOP = "a link to itself"
NO_FILE_AT_ALL = "a pipe or a device, not a file"
IS_FOLDER = "this is a folder"
NO_LEAVE = "it may not be read"
EMPTY_FILE = "the file is empty"
DAMAGED = "damaged or cut off"
EMPTY_CLASS = "class folder without images"
NOT_LISTED = "beside the images of the table but not in it"
OWN_PICTURE = "drawn by igpt"

MAX_FILE_BYTES = 2**28
"""A file above this is no photograph."""

UNCOUNTED = frozenset((EMPTY_CLASS, NOT_LISTED, OWN_PICTURE))
"""Listed, but no image is lost by it."""


def reason_of(error: OSError) -> str:
    """Why a file cannot be opened or read, in the words of this module."""
    if error.errno == errno.ELOOP:
        return LINK_LOOP
    if isinstance(error, FileNotFoundError):
        is_link = error.filename is not None and Path(os.fsdecode(error.filename)).is_symlink()
        return DEAD_LINK if is_link else NO_FILE
    if isinstance(error, IsADirectoryError):
        return IS_FOLDER
    if isinstance(error, PermissionError):
        return NO_LEAVE
    return f"it cannot be read ({error.strerror or error})"


def read_bytes(path: Path, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from `start`.

    Raises:
        UserError: it cannot be read, is empty, or too large to be an image; the reason alone.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block for ever
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(IS_FOLDER if stat.S_ISDIR(status.st_mode) else NO_FILE_AT_ALL)
            held = status.st_size - start
            wanted = held if size is None else size
            if wanted > MAX_FILE_BYTES:
                raise UserError(f"more than {MAX_FILE_BYTES} bytes")
            data = os.pread(handle, max(0, wanted), start)
        finally:
            os.close(handle)
    except ValueError as error:  # no name holds a zero byte
        raise UserError("there is no such file") from error
    except OSError as error:
        raise UserError(reason_of(error)) from error
    if not data:
        raise UserError(EMPTY_FILE)
    if len(data) < wanted:
        raise UserError(DAMAGED)
    return data


def check_pointer(data: bytes) -> None:
    """Refuse what Git LFS leaves in place of a file that it did not fetch.

    Raises:
        UserError: these first bytes of a file are a pointer's; the message is the reason alone.
    """
    if data.startswith(POINTER_START):
        raise UserError(IS_POINTER)


_allowed = MAX_BAD


def allow(max_bad: float) -> None:
    """Let all that follows leave out so large a share, where nothing else is said.

    Raises:
        UserError: it is no share.
    """
    global _allowed
    check_max_bad(max_bad)
    _allowed = max_bad


def allowed() -> float:
    """What `allow` said, else `MAX_BAD`."""
    return _allowed


def check_max_bad(max_bad: float) -> None:
    """Refuse what is no share.

    Raises:
        UserError: it is below 0, above 1, or not a number.
    """
    if not 0 <= max_bad <= 1:
        raise UserError(f"--max-bad {max_bad} is not a share: choose from 0 to 1")


def n_lost(reasons: Mapping[str, int]) -> int:
    """Images lost, by the counts of every reason."""
    return sum(n for reason, n in reasons.items() if reason not in UNCOUNTED)


def in_words(reasons: Mapping[str, int]) -> str:
    """Every reason with its count, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return "; ".join(f"{n} {reason}" for reason, n in ordered) or "it is empty"


def check_rejects(
    reasons: Mapping[str, int], *, n_read: int, n_images: int, max_bad: float, listed: str
) -> None:
    """Stop when more images were left out than is allowed.

    Args:
        reasons: how many were left out for each reason.
        n_read: images tried so far.
        n_images: how many there are in all, about.
        max_bad: share of them that may be left out.
        listed: where each is named.

    Raises:
        UserError: it is more.
    """
    lost = n_lost(reasons)
    # A tenth of five images is none, and one cut file among them says nothing of the others.
    if lost > max(max_bad * n_images, max_bad == MAX_BAD):
        raise UserError(
            f"{lost} of {n_read} images cannot be used ({in_words(reasons)}), more than "
            f"--max-bad {max_bad:g} allows: see {listed}, mend them or raise --max-bad"
        )


class Rejects:
    """Images that a command left out, each with its name and reason."""

    def __init__(self) -> None:
        self.named: list[tuple[str, str]] = []
        self.reasons: Counter[str] = Counter()

    def add(self, name: str, reason: str) -> None:
        """One more."""
        self.named.append((name, reason))
        self.reasons[reason] += 1
