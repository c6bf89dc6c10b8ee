"""Fetching a file over the network: resumable, bounded, and checked before it is used."""

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UserError
from igpt.progress import say, ticking
from igpt.runs import write_error

CONNECT_TIMEOUT_S = 10.0
ATTEMPTS = 5
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


def fetch(remote: Remote, folder: Path) -> Path:
    """The file, from the folder or over the network; an interrupted download is continued.

    Raises:
        UserError: no address answers, or what came has a wrong checksum.
    """
    path = folder / remote.name
    if path.exists():
        if _digest(path, remote.algorithm) == remote.digest:
            return path
        say(f"{path} has a wrong checksum and is fetched again")
        path.unlink()
    if is_offline():
        raise UserError(f"{remote.name} is not in the cache, and the network is switched off")
    part = path.with_name(path.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(_fetch_from(address, remote, part) for address in remote.addresses):
            raise UserError(f"no answer for {remote.name}")
        if _digest(part, remote.algorithm) != remote.digest:
            part.unlink()
            raise UserError(f"{remote.name} came with a wrong checksum and was deleted")
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _fetch_from(address: str, remote: Remote, part: Path) -> bool:
    """Whether the whole file came; a cut connection is taken up again where it broke."""
    say(f"fetching {address}")
    for _ in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(address, remote, part)
            return True
        except (urllib.error.URLError, ConnectionError, TimeoutError, EOFError):
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_size > before:
                    continue
            return False
    return False


def _continue(address: str, remote: Remote, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
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
        append = have and answer.status == 206
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
            raise EOFError


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
