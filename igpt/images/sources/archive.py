"""Entries of archives: plain tars read in place, compressed ones as a stream, zips by `zipfile`.

The headers are parsed here because `tarfile` keeps every member in memory and takes five times as
long; files with holes, of any of their four formats, are left to it. What a header claims is held
against what the archive has before anything is allocated.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, Protocol, cast

from igpt.errors import UserError
from igpt.images.rejects import DAMAGED, EMPTY_FILE, MAX_FILE_BYTES, check_pointer
from igpt.images.sources.remote import UnreachableError, present

MAX_RATIO = 100
"""What is compressed may grow to so many times its size, beyond `FREE_BYTES`: images do not."""
FREE_BYTES = 2**25

Kind = Literal["file", "folder", "link", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of an archive."""

    name: str
    kind: Kind
    start: int
    """First byte of its content in the (unpacked) archive."""
    size: int
    """Bytes of its content, holes included."""
    target: str = ""
    """Of a link: the name in the archive that it stands for, `..` where that lies outside."""
    archive: int = 0
    """Which of several archives joined one behind another."""
    pieces: tuple[tuple[int, int, int], ...] | None = None
    """Of a file with holes: where each piece lies in the archive, in the file, and its size."""
    is_packed: bool = False
    """Its content is compressed on its own, so that it is no part of the archive's bytes."""


def target_of(name: str, linked: str, *, is_hard: bool) -> str:
    """The name in the archive that a link means, or `..` for what lies outside."""
    if not is_hard and linked.startswith("/"):
        return ".."
    parts: list[str] = []
    folder = "" if is_hard else name.rpartition("/")[0]
    for part in f"{folder}/{linked}".split("/"):
        if part == ".." and not parts:
            return ".."
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or ".."


ENCRYPTED = "encrypted: unpack it with its password"
_UTF_8 = 0x800
_LOCAL_BYTES = 30


class ZipArchive:
    """The entries of a zip, in the order of its directory; content can be had at any time.

    Args:
        file: the archive; held open by whoever opened it.

    Raises:
        zipfile.BadZipFile: it is none, or cut off.
    """

    is_plain = True
    has_end = True

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._zip = zipfile.ZipFile(file)
        self._infos: dict[int, zipfile.ZipInfo] = {}

    def __iter__(self) -> Iterator[Entry]:
        for info in self._zip.infolist():
            start = self._start(info)
            self._infos[start] = info
            kind = info.external_attr >> 16
            name = _zip_name(info)
            is_link = stat.S_ISLNK(kind) and info.file_size < 4096
            entry = Entry(
                name=name,
                kind="folder" if name.endswith("/") else "link" if is_link else "file",
                start=start,
                size=info.file_size,
                is_packed=info.compress_type != zipfile.ZIP_STORED or bool(info.flag_bits & 1),
            )
            if is_link:
                linked = self.content(entry).decode("utf-8", "surrogateescape")
                entry = replace(entry, target=target_of(name, linked, is_hard=False))
            yield entry

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where the content of an entry begins."""
        self._file.seek(info.header_offset)
        local = self._file.read(_LOCAL_BYTES)
        if len(local) < _LOCAL_BYTES:
            raise zipfile.BadZipFile("an entry lies behind its end")
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:])
        return int(info.header_offset + _LOCAL_BYTES + name_bytes + extra_bytes)

    def content(self, entry: Entry) -> bytes:
        """The bytes of a file.

        Raises:
            UserError: they are encrypted, damaged or too many; the message is the reason alone.
        """
        info = self._infos[entry.start]
        if info.flag_bits & 1:
            raise UserError(ENCRYPTED)
        if info.file_size > min(MAX_FILE_BYTES, FREE_BYTES + MAX_RATIO * info.compress_size):
            raise UserError(f"more than {MAX_FILE_BYTES} bytes, or than it can hold")
        try:
            data = self._zip.read(info)
        except NotImplementedError as error:
            raise UserError("compressed in a way that is not read: unpack it") from error
        except Exception as error:  # zlib, lzma, checksums and headers have errors of their own
            raise UserError(DAMAGED) from error
        if not data:
            raise UserError(EMPTY_FILE)
        return data


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: Macs write UTF-8 without saying so, some Windows programs `\\`."""
    name = info.filename
    if not info.flag_bits & _UTF_8:
        with contextlib.suppress(UnicodeError):  # another encoding of old: it stays as it came
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip"),
)
"""Endings of the archives that are read; what is inside is known by its first bytes."""
BLOCK = 512
CUT = "archive is cut off or damaged"
# Names and metadata are short; more is an attack on memory.
_MAX_EXTENSION_BYTES = 2**20
_MAX_EXTENSIONS = 16
_CHUNK_BYTES = 2**18
_WINDOW_BYTES = 2**15
# Of zeros behind an end mark, after which nothing more is looked for.
_MAX_PADDING_BYTES = 2**26
_NO_FILES = b"3456"  # devices, folders and pipes have no content, whatever their header says


def is_archive_name(name: str) -> bool:
    """Whether a file's name ends like that of an archive which is read."""
    return name.lower().endswith(SUFFIXES)


class _Reader(Protocol):
    def at(self, position: int, size: int) -> bytes:
        """So many bytes from a place; fewer only at the end."""

    def mark(self, position: int) -> None:
        """What lies before a place is not asked for again."""

    def expect(self, stop: int) -> None:
        """Refuse at once by `ValueError`, where that can be known, what ends before a place."""


class _InPlace:
    """A plain archive, or one inside another: read anywhere."""

    def __init__(self, handle: int, stop: int) -> None:
        self._handle, self._stop = handle, stop
        self._start, self._held = 0, b""

    def at(self, position: int, size: int) -> bytes:
        """So many bytes from a place; fewer only at the end."""
        if position > self._stop:
            raise ValueError("its last file is not whole")
        wanted = min(size, self._stop - position)
        begin = position - self._start
        if begin < 0 or begin + wanted > len(self._held):
            if wanted > _WINDOW_BYTES:
                return os.pread(self._handle, wanted, position)
            # Of small files the next headers come along, which takes less than to ask again.
            ahead = min(_WINDOW_BYTES, self._stop - position)
            self._start, self._held = position, os.pread(self._handle, ahead, position)
            begin = 0
        return self._held[begin : begin + wanted]

    def mark(self, position: int) -> None:
        """Nothing is kept, so nothing is dropped."""

    def expect(self, stop: int) -> None:
        """Refuse by `ValueError` what ends before a place."""
        if stop > self._stop:
            raise ValueError("its last file is not whole")


class _Stream:
    """A compressed archive: read forwards, but for what came since the last `mark`."""

    def __init__(self, file: IO[bytes], raw: IO[bytes]) -> None:
        self._file, self._raw = file, raw
        self._start, self._held = 0, bytearray()

    def mark(self, position: int) -> None:
        """What lies before a place is not asked for again."""
        dropped = min(len(self._held), position - self._start)
        del self._held[:dropped]
        self._start += dropped

    def expect(self, stop: int) -> None:
        """A stream shows its end only when it comes."""

    def at(self, position: int, size: int) -> bytes:
        """So many bytes from a place; fewer only at the end."""
        begin = position - self._start
        if begin < 0:
            raise ValueError("its entries lie over one another")
        if begin > len(self._held):
            self._skip(begin - len(self._held))
            self._start, self._held, begin = position, bytearray(), 0
        while len(self._held) < begin + size:
            data = self._file.read(min(begin + size - len(self._held), _CHUNK_BYTES))
            if not data:
                break
            self._held += data
        self._check_ratio(self._start + len(self._held))
        return bytes(self._held[begin : begin + size])

    def _skip(self, n_bytes: int) -> None:
        end = self._start + len(self._held)
        while n_bytes > 0:
            passed = len(self._file.read(min(n_bytes, _CHUNK_BYTES)))
            if not passed:
                raise ValueError("its last file is not whole")
            n_bytes, end = n_bytes - passed, end + passed
            self._check_ratio(end)

    def _check_ratio(self, n_bytes: int) -> None:
        if n_bytes > FREE_BYTES + MAX_RATIO * self._raw.tell():
            raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size")


class Archive:
    """The entries of an archive, in order: `with opened(path) as archive`.

    Attributes:
        is_plain: whether `start` of an entry is a place in the file, to be read at any time.
        has_end: after the last entry: whether the mark that ends an archive is there.
    """

    def __init__(self, reader: _Reader, *, start: int, is_plain: bool) -> None:
        self._reader, self._start = reader, start
        self.is_plain = is_plain
        self.has_end = False

    def content(self, entry: Entry) -> bytes:
        """The bytes of a file; of a compressed archive's only while it is the last that came.

        Raises:
            UserError: there are too many of them for an image; the message is the reason alone.
            ValueError: they are not all there.
        """
        if entry.size > MAX_FILE_BYTES:
            raise UserError(f"more than {MAX_FILE_BYTES} bytes")
        if entry.pieces is None:
            return self._exactly(entry.start, entry.size)
        whole = bytearray(entry.size)
        for at, place, size in entry.pieces:
            whole[place : place + size] = self._exactly(at, size)
        return bytes(whole)

    def _exactly(self, position: int, size: int) -> bytes:
        data = self._reader.at(position, size)
        if len(data) < size:
            raise ValueError("its last file is not whole")
        return data

    def __iter__(self) -> Iterator[Entry]:
        position, archive, first = self._start, 0, True
        while True:
            self._reader.mark(position)
            header = self._reader.at(position, BLOCK)
            if header == bytes(BLOCK):
                self.has_end = True
                following = self._next_archive(position)
                if following is None:
                    return
                position, archive = following, archive + 1
                continue
            if not header and not first:
                return  # as tar itself, without an end mark but with all files whole
            entry, position = self._entry(position, first=first, archive=archive)
            first = self.has_end = False
            if entry is not None:
                yield entry

    def _entry(self, position: int, *, first: bool, archive: int) -> tuple[Entry | None, int]:
        """The entry whose headers begin at a place, and where the next one's do."""
        begin, fields = position, dict[str, str]()
        for _ in range(_MAX_EXTENSIONS):
            header = self._reader.at(position, BLOCK)
            _check_header(header, first=first)
            kind, size = header[156:157], _number(header[124:136])
            content = position + BLOCK
            if kind not in (b"L", b"K", b"x", b"X", b"g"):
                break
            if size > _MAX_EXTENSION_BYTES:
                raise ValueError("its metadata is too long")
            data = self._exactly(content, _padded(size))[:size]
            if kind in b"LK":
                key = "path" if kind == b"L" else "linkpath"
                fields[key] = data.rstrip(b"\0").decode(errors="surrogateescape")
            elif kind != b"g":
                fields |= _pax(data)
            position = content + _padded(size)
            first = False
        else:
            raise ValueError("a file has too many headers")
        if kind == b"S" or any(key.startswith("GNU.sparse.") for key in fields):
            return self._sparse(begin, archive)
        size = int(fields.get("size", size))
        if size < 0:
            raise ValueError("a size is negative")
        name = fields.get("path") or _name(header)
        if kind == b"1" and size and self._has_no_content(content):
            size = 0
        if kind in _NO_FILES or (kind == b"2"):
            size = 0
        following = content + _padded(size)
        if size:
            self._reader.expect(content + size)
        target = ""
        is_link = kind == b"2" or (kind == b"1" and not size)
        if is_link:
            linked = fields.get("linkpath") or _text(header[157:257])
            target = target_of(name, linked, is_hard=kind == b"1")
        entry = Entry(
            name=name,
            kind="link" if is_link else _kind(kind, name),
            start=content,
            size=size,
            target=target,
            archive=archive,
        )
        return (None if kind in b"VN" else entry), following

    def _has_no_content(self, position: int) -> bool:
        """Whether a header or the end follows: old tars give a hard link its target's size."""
        block = self._reader.at(position, BLOCK)
        return block in (b"", bytes(BLOCK)) or _is_header(block)

    def _sparse(self, begin: int, archive: int) -> tuple[Entry, int]:
        """A file with holes, its map read by `tarfile`."""
        held = tarfile.TarFile(fileobj=cast(IO[bytes], _Cursor(self._reader, begin)), mode="r")
        member = held.next()
        if member is None or member.sparse is None:
            raise ValueError("the map of a file with holes is damaged")
        following, at, pieces = int(held.offset), member.offset_data, []
        for place, size in cast(list[tuple[int, int]], member.sparse):
            if min(place, size) < 0 or place + size > member.size or at + size > following:
                raise ValueError("the map of a file with holes is damaged")
            pieces.append((at, place, size))
            at += size
        entry = Entry(
            name=member.name,
            kind="file",
            start=member.offset_data,
            size=member.size,
            archive=archive,
            pieces=tuple(pieces),
        )
        return entry, following

    def _next_archive(self, position: int) -> int | None:
        """Where another archive begins behind an end mark and its padding, if one does."""
        stop = position + _MAX_PADDING_BYTES
        while position < stop:
            data = self._reader.at(position, _CHUNK_BYTES)
            if not data:
                return None
            if data.count(0) == len(data):
                position += len(data)
                self._reader.mark(position)
                continue
            position += (len(data) - len(data.lstrip(b"\0"))) // BLOCK * BLOCK
            block = self._reader.at(position, BLOCK)
            if not _is_header(block) and block[257:262] == b"ustar":
                raise ValueError("a header is damaged")
            return position if _is_header(block) else None
        return None


class _Cursor:
    """As much of a file as `tarfile` asks for to read one header."""

    def __init__(self, reader: _Reader, position: int) -> None:
        self._reader, self._position = reader, position
        self.mode = "rb"

    def read(self, size: int) -> bytes:
        if size > _MAX_EXTENSION_BYTES:
            raise ValueError("its metadata is too long")
        data = self._reader.at(self._position, size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position


@contextlib.contextmanager
def opened(
    path: Path, *, start: int = 0, size: int | None = None
) -> Iterator[Archive | ZipArchive]:
    """An archive: a tar, plain or compressed, or a zip.

    Args:
        path: the file.
        start: where a plain one begins in it (an archive inside another).
        size: its length there; None: to the end.

    Raises:
        UserError: it is no archive, cut off, or damaged; also while it is read.
    """
    try:
        with present(path).open("rb") as raw:
            head = raw.read(200)
            check_pointer(head)
            raw.seek(0)
            if not start and head[:4] in (b"PK\3\4", b"PK\5\6"):
                yield ZipArchive(raw)
                return
            file = raw if start else unpacked(head, raw)
            if file is raw:
                stop = os.fstat(raw.fileno()).st_size if size is None else start + size
                yield Archive(_InPlace(raw.fileno(), stop), start=start, is_plain=True)
            else:
                yield Archive(_Stream(file, raw), start=0, is_plain=False)
    except UnreachableError:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except damage() as error:
        raise UserError(f"{path}: {CUT}: fetch it again ({error})") from error


def read_files(path: Path, *, start: int = 0, size: int | None = None) -> Iterator[Entry]:
    """The files of an archive, for those who need no content; arguments and errors of `opened`."""
    with opened(path, start=start, size=size) as archive:
        yield from (entry for entry in archive if entry.kind == "file")


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged or compressed file raises."""
    found = (OSError, ValueError, IndexError, EOFError, OverflowError, MemoryError)
    packed = (zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
    try:
        from zstandard import ZstdError
    except ImportError:
        return (*found, *packed)
    return (*found, *packed, ZstdError)


def unpacked(head: bytes, raw: IO[bytes]) -> IO[bytes]:
    """A file, of these first bytes, as a stream of what it unpacks to; itself where it is plain.

    Raises:
        UserError: it is compressed in a way that needs a package which is not here.
    """
    if head[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if head[:3] == b"BZh":
        return cast(IO[bytes], bz2.BZ2File(raw))
    if head[:6] == b"\xfd7zXZ\0":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    if head[:4] == b"\x28\xb5\x2f\xfd":
        try:
            import zstandard
        except ImportError as error:
            raise UserError(
                "it is compressed by zstd: pip install 'igpt[zstd]', or unpack it first"
            ) from error
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


def _kind(kind: bytes, name: str) -> Kind:
    if kind in b"5D" or (kind == b"\0" and name.endswith("/")):
        return "folder"
    # What is left of a file whose beginning is in another archive, and devices and pipes.
    return "other" if kind in b"M346" else "file"


def _check_header(header: bytes, *, first: bool) -> None:
    if len(header) < BLOCK:
        raise ValueError("it is not a tar" if first else "it ends in a header")
    if not _is_header(header):
        raise ValueError("it is not a tar" if first else "a header is damaged")


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK:
        return False
    try:
        stated = _number(block[148:156])
    except ValueError:
        return False
    plain = _sum(block[:148]) + 8 * ord(" ") + _sum(block[156:334]) + _sum(block[334:])
    if stated == plain:
        return True
    # Some old writers summed signed bytes. Counting them takes longer than all else of a header.
    return stated == plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _sum(few: bytes) -> int:
    """The sum of at most 256 bytes, in a tenth of the time of Python's: 1 less than adler32's."""
    return (zlib.adler32(few) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """Octal text, or base 256 for large files."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise ValueError("a size is negative")
        return int.from_bytes(field[1:], "big")
    value = int(field.split(b"\0")[0].strip() or b"0", 8)
    if value < 0:
        raise ValueError("a size is negative")
    return value


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU's own header has no prefix, but other things in its place.
    if header[257:262] == b"ustar" and header[345] and header[257:265] != b"ustar  \0":
        name = f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records of the form `LENGTH KEY=VALUE\\n`."""
    fields = {}
    at = 0
    while at < len(data) and data[at]:
        blank = data.find(b" ", at, at + 20)
        length = int(data[at:blank]) if blank > at else 0
        if not max(0, blank - at) < length <= len(data) - at:
            raise ValueError("its metadata is damaged")
        key, _, value = data[blank + 1 : at + length].rstrip(b"\n").partition(b"=")
        fields[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        at += length
    return fields
