"""Where the images of a packed set came from, so that they can be cropped anew.

Beside the shards lie `originals.npy`, a row an image, and `original-names.npy`, the names of the
files one after another. Both are memory-mapped: what a process holds does not grow with the number
of images. Where `igpt prepare --keep-side` kept reduced copies, these are `kept-*.tar` in the same
folder, and the files that they were made of are no longer needed.
"""

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.images.sources.source import Original, Span, read_span

NAME, START, SIZE, DIGEST = range(4)
"""Columns of `originals.npy`: first byte of the file's name, -1 where there is no file; first byte
of the image; its bytes, -1: the whole file; `digest_of` it."""


def digest_of(data: bytes) -> int:
    """What an encoded image is recognised by: 8 bytes of blake2b, as an int64 holds them."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def digest_text(digest: int) -> str:
    """A digest for people."""
    return digest.to_bytes(8, "little", signed=True).hex()


def read_original(original: Original) -> bytes:
    """The bytes of an encoded image, which are those that were prepared.

    Raises:
        UserError: they are not, or cannot be read.
    """
    data = read_span(original.span)
    if (found := digest_of(data)) != original.digest:
        raise UserError(
            f"it is not the image that was prepared (blake2b {digest_text(found)}, then "
            f"{digest_text(original.digest)})"
        )
    return data


class Originals:
    """The encoded images of a packed set, by the places of their rows.

    Args:
        folder: of the packed set.
        entry: `originals` of its manifest.
    """

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        self._folder = folder
        self._root, self._beside = Path(entry["root"]), Path(entry["beside"])
        self.is_kept = not entry["root"]
        self._rows = np.load(folder / entry["rows"]["file"], mmap_mode="r")
        self._names = np.load(folder / entry["names"]["file"], mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, row: int) -> Original | None:
        """Of one row; None where it was no file."""
        name, start, size, digest = (int(value) for value in self._rows[row])
        if name < 0:
            return None
        return Original(Span(self._path(name), start, None if size < 0 else size), digest)

    def check(self, rows: np.ndarray, *, n: int = 8) -> None:
        """Read some of the images, before any work begins that needs them all.

        Raises:
            UserError: they moved or changed, or an image was no file.
        """
        for row in rows[np.unique(np.linspace(0, len(rows) - 1, n).astype(np.int64))]:
            original = self.at(int(row))
            if original is None:
                raise UserError(no_files(self._folder))
            try:
                read_original(original)
            except UserError as error:
                raise UserError(
                    f"{original.span.path}, an original of {self._folder}, {error}: put it back, "
                    "or prepare the set again (with --keep-side 256 it keeps what crops need)"
                ) from error

    def _path(self, first: int) -> Path:
        chunk = 256
        while True:
            text = self._names[first : first + chunk].tobytes()
            end = text.find(b"\n")
            if end >= 0:
                break
            chunk *= 4
        path = Path(os.fsdecode(text[:end]))
        if self.is_kept:
            return self._folder / path
        if self._base == self._root or not path.is_relative_to(self._root):
            return path
        return self._base / path.relative_to(self._root)

    @cached_property
    def _base(self) -> Path:
        """Where the originals lie now: where they lay, or at the same place beside the set."""
        moved = self._folder.absolute() / self._beside
        return moved if not self._root.exists() and moved.exists() else self._root


def originals_of(packed: PackedSet) -> Originals | None:
    """What the images of a packed set were made of; None where they were no files."""
    entry = packed.manifest.get("originals")
    return None if entry is None else Originals(packed.folder, entry)


def no_files(folder: Path) -> str:
    """What to say of a set whose originals were arrays."""
    return (
        f"{folder} has no image files to crop anew: set data.augment to cifar, flip or none, or "
        "store crops with igpt prepare --views"
    )
