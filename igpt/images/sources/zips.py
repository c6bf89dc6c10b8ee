"""Entries of zip archives, as `igpt.images.sources.archive` gives those of tars."""

import contextlib
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from igpt.errors import UserError
from igpt.images.rejects import DAMAGED, EMPTY_FILE, MAX_FILE_BYTES
from igpt.images.sources.entries import FREE_BYTES, MAX_RATIO, Entry, target_of

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
            name = _name(info)
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


def _name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: Macs write UTF-8 without saying so, some Windows programs `\\`."""
    name = info.filename
    if not info.flag_bits & _UTF_8:
        with contextlib.suppress(UnicodeError):  # another encoding of old: it stays as it came
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")
