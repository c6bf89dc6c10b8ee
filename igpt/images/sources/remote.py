"""Data that is not on this disk: the Hub's data sets, and any address that fsspec opens.

    hf:owner/name[@revision][:config]      https://…/photos.tar.gz      s3://bucket/folder

A source is mirrored below the cache folder: every file of it under its own name, at first as a
placeholder without content, so that the readers find folders, tables and archives as they would on
this disk. `present` fetches a file's content when a reader is about to open it; where all mirrors
have more than `limit_bytes`, the files that were fetched first become placeholders again. A mirror
belongs to one state of its source (the commit, or all sizes and tags), and its files are read in
the order of their names, so nothing depends on the network.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from igpt.errors import UserError
from igpt.files import FolderLock, cache_folder, read_json, write_error, write_json
from igpt.images.sources.download import (
    ATTEMPTS,
    CONNECT_TIMEOUT_S,
    NO_RANGE,
    PARTIAL,
    alone,
    is_offline,
    length,
)
from igpt.images.sources.names import counts, expanded
from igpt.progress import say

HUB = "hf:"
PAUSE_S = 1.0
"""Before the second attempt at a file; doubled each time."""
SILENT_S = 30.0
"""A server that sends nothing for so long does not answer."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^:\s]+))?(:(?P<config>.+))?")
_INDEX = "index.json"
_LATEST = "latest.json"
_CHUNK_BYTES = 2**20
_MAX_FILES = 10_000_000
_DEFAULT_LIMIT_GB = 50.0
_ABSENT = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR)
# Files of a repository that are not data.
_NOT_DATA = re.compile(r"(^|/)(README|LICENSE|\.gitattributes)|\.(md|py|txt\.gz)$", re.IGNORECASE)


def is_remote(data: str) -> bool:
    """Whether DATA says that it is elsewhere: only such names ever become a request."""
    return data.startswith(HUB) or _ADDRESS.match(data) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """One state of a source, and where its files are on this disk."""

    name: str
    """The source and its state, for people."""
    key: str
    """Another one for each state."""
    path: Path
    """The folder of the files, or the only file."""


def limit_bytes() -> float:
    """Most bytes of fetched files that are kept: `IGPT_REMOTE_GB`, else 50 GB."""
    text = os.environ.get("IGPT_REMOTE_GB", str(_DEFAULT_LIMIT_GB))
    try:
        return float(text) * 1e9
    except ValueError:
        raise UserError(f"IGPT_REMOTE_GB is {text}: set it to a number of gigabytes") from None


def mirror(data: str) -> Mirror:
    """The mirror of what DATA names, its files listed, none of them fetched.

    Where the network is switched off or does not answer, it is the last one that was listed.

    Raises:
        UserError: there is no such data, it may not be had, or a package for its protocol lacks.
    """
    place = _root() / hashlib.blake2b(data.encode(), digest_size=8).hexdigest()
    try:
        if is_offline():
            raise _NoAnswerError("the network is switched off")
        listed = _list_hub(data) if data.startswith(HUB) else _list_address(data)
    except _NoAnswerError as error:
        if not (place / _LATEST).is_file():
            raise UserError(f"{data}: no answer ({error}): try again later") from error
        say(f"{data}: no answer ({error}); what was listed before is used")
        return _opened(place / read_json(place / _LATEST)["state"])
    if not listed.files:
        raise UserError(f"{data} holds no files: check the name")
    folder = place / listed.state[:16]
    with FolderLock(place, wait=True):  # ranks of one run all come here at once
        if not (folder / _INDEX).is_file():
            _lay_out(folder, listed)
        write_json(place / _LATEST, {"state": folder.name})
    return _opened(folder)


class UnreachableError(UserError):
    """Nobody answers for a file that was listed, which may be sound."""


class _NoAnswerError(Exception):
    """The network, or who should answer, is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """What a source has."""

    name: str
    state: str
    """Hex; another one when any file changes."""
    files: dict[str, tuple[str, int]]
    """By relative name: what the transport calls it, and its bytes, -1: not known."""
    options: dict[str, Any]
    """Of the transport."""
    is_file: bool = False


def _root() -> Path:
    return cache_folder() / "remote"


def _opened(folder: Path) -> Mirror:
    index = _index(folder)
    path = folder / "files"
    if index["is_file"]:
        path = path / next(iter(index["files"]))
    key = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', index['name'])[:60]}-{folder.name}"
    return Mirror(name=index["name"], key=key, path=path)


@functools.lru_cache(64)
def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = read_json(folder / _INDEX)
    return index


def _lay_out(folder: Path, listed: _Listed) -> None:
    """A placeholder for every file, then the index that says what they stand for."""
    if len(listed.files) > _MAX_FILES:
        raise UserError(f"{listed.name} has more than {_MAX_FILES} files: name a part of it")
    try:
        for relative in listed.files:
            path = folder / "files" / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    except OSError as error:
        raise write_error(folder, error) from error
    document = {key: getattr(listed, key) for key in ("name", "files", "options", "is_file")}
    write_json(folder / _INDEX, document)


def _safe(names: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Those that lie below the source and count there."""
    for name, value in names:
        parts = name.split("/")
        if name and "\0" not in name and not {"", ".", ".."} & set(parts) and counts(name):
            yield name, value


def _list_address(data: str) -> _Listed:
    """The files behind an address: one, a folder's, or those that a pattern means."""
    import fsspec

    try:
        patience = _patience(data.partition(":")[0])
        fs, path = fsspec.core.url_to_fs(data, **patience)
    except ImportError as error:
        raise UserError(f"{data} cannot be opened: {_line(error)}") from error
    except ValueError as error:
        raise UserError(f"{data} is no address that fsspec knows: {_line(error)}") from error
    with _asking(data):
        if is_listed := (names := expanded(path)) != [path]:  # perhaps thousands: none is asked
            found = {name: {"type": "file"} for name in names}
            top = path[: path.index("{")].rpartition("/")[0]
        elif is_listed := "*" in path:
            found = fs.glob(path, detail=True)
            top = path[: path.index("*")].rpartition("/")[0]
        elif (info := fs.info(path))["type"] == "directory":
            found, top = fs.find(path, detail=True), path
        else:
            found, top = {path: info}, ""
    is_file = not top and not is_listed
    described = (
        (_relative(name, top), (name, info))
        for name, info in sorted(found.items())
        if info["type"] == "file"
    )
    state, files = hashlib.blake2b(data.encode(), digest_size=16), dict[str, tuple[str, int]]()
    for relative, (name, info) in _safe(described):
        size = info.get("size")
        files[relative] = (name, -1 if size is None else int(size))
        tags = [str(info.get(key)) for key in ("ETag", "etag", "mtime", "LastModified", "updated")]
        state.update("\0".join((relative, str(size), *tags)).encode(errors="surrogateescape"))
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return _Listed(
        name=data,
        state=state.hexdigest(),
        files=files,
        options={
            "protocol": protocol,
            **{name: fs.storage_options[name] for name in fs.storage_options.keys() - patience},
        },
        is_file=is_file,
    )


def _patience(protocol: str) -> dict[str, Any]:
    """How long one waits: for an answer and for more of it, however long the whole takes."""
    if protocol not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENT_S)
    return {"client_kwargs": {"timeout": timeout}}


def _relative(name: str, top: str) -> str:
    if not top:
        return unquote(urlsplit(name).path).rpartition("/")[2] or "file"
    return name.removeprefix(top).lstrip("/")


def _list_hub(data: str) -> _Listed:
    """The data files of a data set on the Hub at one commit."""
    from huggingface_hub import HfApi

    named = _HUB_NAME.fullmatch(data.removeprefix(HUB))
    if named is None:
        raise UserError(f"{data} is no name on the Hub: write hf:owner/name[@revision][:config]")
    with _asking(data):
        info = HfApi().dataset_info(
            named["repo"], revision=named["revision"], files_metadata=True, timeout=30
        )
    siblings = {s.rfilename: s.size for s in info.siblings or ()}
    every = dict(_safe(iter(sorted(siblings.items()))))
    chosen = _of_config(data, every, named["config"], _configs(info))
    files = {n: (n, -1 if every[n] is None else int(every[n])) for n in chosen}
    options = {"protocol": "hf", "repo": named["repo"], "revision": info.sha}
    config = f":{named['config']}" if named["config"] else ""
    return _Listed(
        name=f"{HUB}{named['repo']}@{str(info.sha)[:12]}{config}",
        state=hashlib.blake2b(f"{info.sha}{config}".encode(), digest_size=16).hexdigest(),
        files=files,
        options=options,
    )


def _configs(info: Any) -> dict[str, list[str]]:
    """Patterns of the files of each configuration that a data set's card declares."""
    card = getattr(info, "card_data", None)
    declared = getattr(card, "configs", None) if card is not None else None
    found: dict[str, list[str]] = {}
    for config in declared if isinstance(declared, list) else ():
        if isinstance(config, dict):
            name = str(config.get("config_name", "default"))
            patterns = list(_patterns(config.get("data_files")))
            folder = config.get("data_dir")
            found[name] = patterns or ([f"{folder}/**"] if isinstance(folder, str) else [])
    return found


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)
    elif isinstance(value, dict):
        yield from _patterns(value["path"] if "path" in value else list(value.values()))


def _of_config(
    data: str, files: dict[str, Any], config: str | None, declared: dict[str, list[str]]
) -> list[str]:
    """The files of one configuration.

    Raises:
        UserError: there are several and none is named, or the one that is named is not there.
    """
    names = [name for name in files if not _NOT_DATA.search(name)]
    if config is None:
        config = next(iter(declared)) if len(declared) == 1 else None
        if config is None and "default" in declared:
            config = "default"
        if config is None and declared:
            raise UserError(
                f"{data} has the configurations {', '.join(sorted(declared))}: "
                f"add one, as {data}:{min(declared)}"
            )
        if config is None:
            return names
    if config in declared:
        patterns = [_pattern(text) for text in declared[config]]
        chosen = [n for n in names if any(p.fullmatch(n) for p in patterns)]
        return chosen if patterns else names
    chosen = [name for name in names if name.startswith(f"{config}/")]
    if not chosen:
        folders = {name.split("/")[0] for name in names if "/" in name}
        known = ", ".join(sorted(declared or folders)) or "none"
        raise UserError(f"{data}: there is no configuration {config}: it has {known}")
    return chosen


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of the Hub's: `*` within a folder's names, `**` across folders."""
    parts = re.split(r"(\*\*/?|\*|\?)", text.removeprefix("./"))
    meant = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meant.get(part, re.escape(part)) for part in parts))


@contextlib.contextmanager
def _asking(data: str) -> Iterator[None]:
    """What goes wrong between here and there, as one line.

    Raises:
        UserError: there is no such thing, or it may not be had.
        _NoAnswerError: nobody answers, so that asking again may help.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except (FileNotFoundError, PermissionError) as error:
        if type(error).__name__ == "LocalEntryNotFoundError":  # of the Hub's client: no network
            raise _NoAnswerError(_line(error)) from error
        if isinstance(error.__cause__, ConnectionError | TimeoutError) or (
            isinstance(error.__cause__, OSError) and error.__cause__.errno not in _ABSENT
        ):  # fsspec calls every failure of a server an absent file
            raise _NoAnswerError(_line(error.__cause__)) from error
        reason = "there is nothing" if isinstance(error, FileNotFoundError) else "no leave to read"
        raise UserError(f"{data}: {reason} ({_line(error)}): check the address") from error
    except ImportError as error:
        raise UserError(f"{data} cannot be opened: {_line(error)}") from error
    except Exception as error:  # each protocol has errors of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        status = status or getattr(error, "status", None)
        if status in (401, 403, 404, 410):
            raise UserError(
                f"{data}: there is nothing, or no leave to read it (status {status}): check the "
                "name, or log in with hf auth login"
                if data.startswith(HUB)
                else f"{data}: there is nothing, or no leave to read it (status {status}): check "
                "the address"
            ) from error
        raise _NoAnswerError(_line(error)) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def named(held: Mirror) -> Iterator[None]:
    """Errors inside name the source, and not where its mirror lies.

    Raises:
        UserError: what was raised inside.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace(str(held.path), held.name)) from error


def may_be_hub(data: str) -> bool:
    """Whether a name has the form of the Hub's: it is not asked for, only said."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", data) is not None


def is_mirrored(path: Path) -> bool:
    """Whether a path is of a mirror, so that its files may be placeholders."""
    return _root() in path.parents


def fetch_all(folder: Path) -> None:
    """Fetch every file of a mirrored folder, for what is read at any place at any time.

    Raises:
        UnreachableError: one cannot be fetched.
    """
    for path in sorted(folder.rglob("*")) if is_mirrored(folder) else ():
        if path.is_file():
            present(path)


def present(path: Path) -> Path:
    """The path; of a mirrored file, with its content, fetched if it is not here.

    Raises:
        UnreachableError: it cannot be fetched.
    """
    root = _root()
    if not os.fspath(path).startswith(f"{root}/"):
        return path
    place, state, _, *parts = path.relative_to(root).parts
    folder, relative = root / place / state, "/".join(parts)
    address, size = _index(folder)["files"].get(relative, ("", 0))
    if not address or _is_whole(path, size):
        return path
    with alone(folder / "parts", hashlib.blake2b(relative.encode(), digest_size=8).hexdigest()):
        if not _is_whole(path, size):
            _fetch(folder, relative, path)
    return path


def _is_whole(path: Path, size: int) -> bool:
    have = length(path)
    return have == size if size >= 0 else have > 0


def _fetch(folder: Path, relative: str, path: Path) -> None:
    index = _index(folder)
    address, size = index["files"][relative]
    get = _get_hub if index["options"]["protocol"] == "hf" else _get_fsspec
    part = folder / "parts" / (hashlib.sha256(relative.encode()).hexdigest()[:32] + ".part")
    shown = f"{index['name']}: {relative}"
    if is_offline():
        raise UnreachableError(f"{shown} is not in the cache, and the network is switched off")
    failed, most = 0, 0
    while True:
        try:
            if length(part) != size:
                with _asking(shown):
                    get(index["options"], address, part)
            if size < 0 or length(part) == size:
                break
            reason = f"{length(part)} bytes came, not {size}"
            part.unlink()
        except _NoAnswerError as error:
            reason = str(error)
        have = length(part)
        failed = 1 if have > most else failed + 1  # since more of it came
        most = max(most, have)
        if failed == ATTEMPTS:
            raise UnreachableError(f"{shown} cannot be fetched ({reason}): try again later")
        time.sleep(PAUSE_S * 2 ** (failed - 1))
    try:
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    _make_room(folder, path)


def _get_fsspec(options: dict[str, Any], address: str, part: Path) -> None:
    """Append what lacks of a file; from a server that knows no ranges, everything."""
    import fsspec

    part.parent.mkdir(parents=True, exist_ok=True)
    fs = fsspec.filesystem(**options, **_patience(options["protocol"]))
    have = length(part)
    if options["protocol"] not in ("http", "https"):
        with fs.open(address, "rb") as file, part.open("ab") as out:
            file.seek(have)
            shutil.copyfileobj(file, out, _CHUNK_BYTES)
        return
    asked = {**options.get("headers", {}), **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with fs.open(address, "rb", block_size=0, headers=asked) as file, part.open("ab") as out:
            if have and file.r.status != PARTIAL:
                out.truncate(0)
            shutil.copyfileobj(file, out, _CHUNK_BYTES)
    except Exception as error:
        if getattr(error, "status", None) == NO_RANGE:  # what is here is no beginning of that file
            part.unlink()
        raise


def _get_hub(options: dict[str, Any], address: str, part: Path) -> None:
    """The Hub's own client resumes, retries and checks."""
    from huggingface_hub import hf_hub_download

    held = part.with_suffix(".hub")
    path = hf_hub_download(
        options["repo"],
        address,
        repo_type="dataset",
        revision=options["revision"],
        local_dir=held,
    )
    Path(path).replace(part)
    shutil.rmtree(held, ignore_errors=True)


_fetched_bytes = 0.0


def _make_room(folder: Path, kept: Path) -> None:
    """Turn the files that were fetched first into placeholders, when all mirrors are too large."""
    global _fetched_bytes
    limit = limit_bytes()
    _fetched_bytes += kept.stat().st_size
    if _fetched_bytes < limit / 8:
        return
    _fetched_bytes = 0
    held = []
    for files in _root().glob("*/*/files"):
        for top, _, names in os.walk(files):
            for path in (Path(top, name) for name in names):
                with contextlib.suppress(OSError):  # another process removed it
                    if (status := path.stat()).st_size:
                        held.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in held)
    empty = folder / "parts" / f"empty-{os.getpid()}"
    for _, size, path in sorted(held):
        if total <= limit or path == kept:
            break
        empty.touch()
        empty.replace(path)  # who has it open reads on
        total -= size
