"""Fetching a file over the network: resumable, bounded, and checked before it is used."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UserError
from igpt.files import FolderLock, write_error
from igpt.progress import say, ticking

CONNECT_TIMEOUT_S = 10.0
ATTEMPTS = 5
PARTIAL, NO_RANGE = 206, 416
"""Answers to who asks for the rest of a file: here it is, and there is no such place in it."""
# Answers of a server that is busy or restarts: the same request may succeed a little later.
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
PAUSE_S = 1.0
"""Before the second attempt at a busy server; doubled each time."""
_CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch."""

    name: str
    """Its name in the downloads folder."""
    addresses: tuple[str, ...]
    """Where it is kept, tried in order."""
    n_bytes: int
    """Its exact length; 0: not known."""
    algorithm: str
    """Of the digest: sha256 or md5."""
    digest: str
    """Hex."""


def is_offline() -> bool:
    """Whether the user forbids the network: `IGPT_OFFLINE` or `HF_HUB_OFFLINE` is set."""
    return any(
        os.environ.get(name, "0") not in ("", "0") for name in ("IGPT_OFFLINE", "HF_HUB_OFFLINE")
    )


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """One process at a time fetches `name` into a folder; the others wait, and are told so."""
    place = folder / ".locks" / name
    try:
        lock = FolderLock(place).__enter__()
    except UserError:
        say(f"another process fetches {name}: waiting for it")
        lock = FolderLock(place, wait=True).__enter__()
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def fetch(remote: Remote, folder: Path) -> Path:
    """The file, from the folder or over the network; an interrupted download is continued.

    Raises:
        UserError: no address answers, or what came has a wrong checksum.
    """
    with alone(folder, remote.name):
        return _fetch(remote, folder / remote.name)


def _fetch(remote: Remote, path: Path) -> Path:
    if path.exists():
        if _is_right(path, remote):
            return path
        say(f"{path} has a wrong checksum and is fetched again")
        path.unlink()
    part = path.with_name(path.name + ".part")
    try:
        # A process may have been killed between the last byte and the new name.
        if not (part.exists() and _is_right(part, remote)):
            _fetch_part(remote, part)
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _fetch_part(remote: Remote, part: Path) -> None:
    """Complete `part`; one that an older file began is dropped and fetched from the start."""
    if is_offline():
        raise UserError(f"{remote.name} is not in the cache, and the network is switched off")
    for continued in (part.exists(), False):
        reasons = []
        for address in remote.addresses:
            if not (reason := _fetch_from(address, remote, part)):
                break
            reasons.append(reason)
        else:
            raise UserError(f"no answer for {remote.name} ({reasons[-1]}): try again later")
        if _is_right(part, remote):
            return
        part.unlink()
        if not continued:
            break
    raise UserError(f"{remote.name} came with a wrong checksum and was deleted")


def _fetch_from(address: str, remote: Remote, part: Path) -> str:
    """Nothing when the whole file came, else why not; a cut connection is taken up again."""
    say(f"fetching {address}")
    reason = ""
    for attempt in range(ATTEMPTS):
        before = length(part)
        try:
            _continue(address, remote, part)
            return ""
        except urllib.error.HTTPError as error:
            reason = f"status {error.code}"
            if error.code == NO_RANGE:  # what is here is not a beginning of that file
                part.unlink(missing_ok=True)
            elif error.code in BUSY:
                time.sleep(PAUSE_S * 2**attempt)
            else:
                return reason
        except (OSError, EOFError, http.client.HTTPException) as error:
            if not isinstance(error, _OF_NETWORK):
                raise  # of the disk
            reason = str(getattr(error, "reason", error)) or "the connection broke"
            if length(part) <= before:
                return reason
    return reason


_OF_NETWORK = (
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    EOFError,
    http.client.HTTPException,
)


def length(path: Path) -> int:
    """Bytes that are here of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _continue(address: str, remote: Remote, part: Path) -> None:
    have = length(part)
    if remote.n_bytes and have > remote.n_bytes:
        part.unlink()
        have = 0
    if remote.n_bytes and have == remote.n_bytes:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    with (
        urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as answer,
        ticking(remote.name) as ticker,
    ):
        # A server that ignores the range sends everything from the start.
        append = have and answer.status == PARTIAL
        done = have if append else 0
        total = remote.n_bytes or done + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if append else "wb") as file:
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                ticker.update(done, total, "bytes")
                if done > total > 0:
                    return  # more than there should be: the checksum will say so
        if done < total:
            raise EOFError("the connection broke")


def _is_right(path: Path, remote: Remote) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, remote.algorithm).hexdigest() == remote.digest
