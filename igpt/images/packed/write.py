"""Writing a packed set piece by piece, so that a killed preparation goes on where it was."""

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from igpt.errors import UserError
from igpt.files import read_json, sha256_of, sync_folder, write_error, write_json
from igpt.images.packed.format import FORMAT, MANIFEST, SCHEMA_VERSION
from igpt.images.packed.originals import digest_of
from igpt.images.sources.source import Original

SHARD_BYTES = 2**30
TAR_BLOCK = 512
STATE = "unfinished.json"
LOCK = "lock"


class GrowingArray:
    """A `.npy` file that rows are appended to; named `.part` until `close` completes its header.

    Args:
        path: of the finished file.
        row_shape: shape of one row.
        dtype: of its values.
        n_rows: rows that were committed before; whatever lies behind them is dropped.
    """

    def __init__(
        self, path: Path, row_shape: tuple[int, ...], dtype: str, *, n_rows: int = 0
    ) -> None:
        self.path = path
        self.n_rows = n_rows
        self._row_shape = row_shape
        self._dtype = np.dtype(dtype)
        self._part = path.with_name(path.name + ".part")
        if n_rows and not self._part.exists() and path.exists():
            path.replace(self._part)  # it was closed, but that was not committed
        self._file = self._part.open("r+b" if n_rows else "w+b")
        if not n_rows:
            self._write_header()
        row_bytes = self._dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
        header_bytes = self._header_bytes()
        end = header_bytes + n_rows * row_bytes
        if self._file.seek(0, os.SEEK_END) < end:
            raise UserError(f"{self._part} is cut: delete {path.parent} and prepare again")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: np.ndarray) -> None:
        """Add (k, *row_shape) rows."""
        assert rows.shape[1:] == self._row_shape
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.n_rows += len(rows)

    def sync(self) -> None:
        """Everything appended survives a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> dict[str, Any]:
        """Complete the file; what the manifest says of it."""
        self._file.seek(0)
        self._write_header()
        self.sync()
        self._file.close()
        self._part.replace(self.path)
        return {"file": self.path.name, "n": self.n_rows, "sha256": sha256_of(self.path)}

    def abandon(self) -> None:
        """Let go of the file as it is."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header for a first axis of up to 21 digits: its length never changes.
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.n_rows, *self._row_shape),
            },
        )
        self._file.flush()

    def _header_bytes(self) -> int:
        self._file.seek(0)
        np.lib.format.read_magic(self._file)
        np.lib.format.read_array_header_1_0(self._file)
        return self._file.tell()


@dataclass(slots=True)
class Progress:
    """How far a preparation is, as committed to `unfinished.json`."""

    blocks: int = 0
    """Blocks of the source that are done."""
    held: str = ""
    """Hex of what all of these were made of; empty: an earlier version did not note it."""
    shards: list[dict[str, Any]] = field(default_factory=list)
    """Finished shards, as in the manifest."""
    shard_rows: int = 0
    """Rows in the shard that grows."""
    n_read: int = 0
    """Images tried."""
    source_px: int = 0
    """Shorter side of the largest image, in pixels."""
    reject_bytes: int = 0
    """Length of rejects.csv."""
    largest_label: int = -1
    """The highest label stored."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejects by reason."""
    name_bytes: int = 0
    """Length of the names of the originals."""
    root: str = ""
    """The folder that all originals lie in."""
    kept: list[int] = field(default_factory=list)
    """Bytes of each tar of kept copies."""

    def add(self, holds: str) -> None:
        """One more block is done, of this fingerprint."""
        self.blocks += 1
        self.held = hashlib.blake2b((self.held + holds).encode(), digest_size=16).hexdigest()


class PackWriter:
    """Appends blocks to a packed set; each `commit` is a point that a later process can go on from.

    Args:
        folder: the packed set to be.
        image_size: side S in pixels.
        settings: everything the stored bytes depend on; a continuation must agree.
        shard_bytes: most bytes of images in a shard.
        kept_name: begins the name of the tars of kept copies, one of its own for each part.

    Raises:
        UserError: the folder holds a finished set, or an unfinished one of other settings.
    """

    def __init__(
        self,
        folder: Path,
        image_size: int,
        *,
        settings: dict[str, Any],
        shard_bytes: int = SHARD_BYTES,
        kept_name: str = "kept",
    ) -> None:
        self.folder = folder
        self._image_size = image_size
        self._settings = settings
        self._shard_limit = max(1, shard_bytes // (3 * image_size**2))
        with writing_into(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.progress = self._read_state()
            n_rows = self.progress.shard_rows + sum(s["n"] for s in self.progress.shards)
            self._labels = GrowingArray(folder / "labels.npy", (), "<i4", n_rows=n_rows)
            self._codes = GrowingArray(folder / "splits.npy", (), "|u1", n_rows=n_rows)
            self._shard = self._open_shard(self.progress.shard_rows)
            self._originals = OriginalsWriter(folder, self.progress, n_rows, shard_bytes, kept_name)
            self._rejects = (folder / "rejects.csv").open("a+b")
            self._rejects.truncate(self.progress.reject_bytes)
            if not self.progress.reject_bytes:
                self._rejects.write(b"image,reason\n")

    @property
    def largest_label(self) -> int:
        """The highest label stored so far, -1 where there is none."""
        return self.progress.largest_label

    @property
    def n_rows(self) -> int:
        """Images stored so far."""
        return self._labels.n_rows

    def append(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        codes: np.ndarray,
        originals: Sequence[Original | bytes | None] = (),
    ) -> None:
        """Store (k, S, S, 3) uint8 images with what they were made of.

        Args:
            images: at the input resolution.
            labels: (k,), -1: none.
            codes: (k,) of the splits.
            originals: k files, or encoded copies to keep; None: it was no file; empty: none was.
        """
        self.progress.largest_label = max(self.largest_label, int(labels.max(initial=-1)))
        with writing_into(self.folder):
            self._labels.append(labels)
            self._codes.append(codes)
            self._originals.append(originals or [None] * len(images))
            while len(images):
                room = self._shard_limit - self._shard.n_rows
                self._shard.append(images[:room])
                images = images[room:]
                if len(images):
                    self.progress.shards.append(self._shard.close())
                    self._shard = self._open_shard(0)

    def reject(self, key: str, reason: str) -> None:
        """Note an image that is left out."""
        reasons = self.progress.reasons
        reasons[reason] = reasons.get(reason, 0) + 1
        quoted = '"' + key.replace('"', '""') + '"'
        because = f'"{reason}"' if "," in reason else reason
        with writing_into(self.folder):
            self._rejects.write(f"{quoted},{because}\n".encode(errors="backslashreplace"))

    def commit(self) -> None:
        """Make everything so far a point to go on from."""
        with writing_into(self.folder):
            self._rejects.flush()
            for array in (self._shard, self._labels, self._codes, self._originals):
                array.sync()
            self.progress.reject_bytes = self._rejects.tell()
            self.progress.shard_rows = self._shard.n_rows
            self._write_state(self.progress)

    def finish(self, facts: dict[str, Any]) -> None:
        """Complete the set.

        Args:
            facts: classes, source, views, own_splits, seed, valid_fraction.
        """
        self.commit()
        with writing_into(self.folder):
            self._rejects.close()
            manifest = {
                "format": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "image_size": self._image_size,
                "n_images": self.n_rows,
                **facts,
                "shards": [*self.progress.shards, self._shard.close()],
                "labels": self._labels.close(),
                "splits": self._codes.close(),
                "originals": self._originals.close(),
                "n_read": self.progress.n_read,
                "rejects": self.progress.reasons,
            }
            sync_folder(self.folder)
            write_json(self.folder / MANIFEST, manifest)
            (self.folder / STATE).unlink()
            (self.folder / LOCK).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Let go of the files; what was committed stays."""
        for array in (self._shard, self._labels, self._codes, self._originals):
            array.abandon()
        with contextlib.suppress(OSError):
            self._rejects.close()

    def _write_state(self, progress: Progress) -> None:
        state = {"settings": self._settings, "progress": asdict(progress)}
        write_json(self.folder / STATE, state)

    def _open_shard(self, n_rows: int) -> GrowingArray:
        side = self._image_size
        path = self.folder / f"images-{len(self.progress.shards):05d}.npy"
        return GrowingArray(path, (side, side, 3), "|u1", n_rows=n_rows)

    def _read_state(self) -> Progress:
        path = self.folder / STATE
        if not path.exists():  # written first, so that the folder is known as ours from the start
            self._write_state(Progress())
        state = read_json(path)
        if state["settings"] != self._settings:
            changed = [k for k, v in self._settings.items() if state["settings"].get(k) != v]
            raise UserError(
                f"{self.folder} holds an unfinished preparation with another "
                f"{', '.join(changed)}: use the same, or delete the folder"
            )
        return Progress(**state["progress"])


class OriginalsWriter:
    """Notes what every row was made of (`igpt.images.packed.originals`), and keeps copies.

    Args:
        folder: the packed set to be.
        progress: says how far an earlier process came, and is brought up to date by `sync`.
        n_rows: rows that were committed.
        shard_bytes: most bytes of a tar of copies.
        kept_name: begins the names of these.
    """

    def __init__(
        self, folder: Path, progress: Progress, n_rows: int, shard_bytes: int, kept_name: str
    ) -> None:
        self._folder, self._progress = folder, progress
        self._limit, self._kept_name = shard_bytes, kept_name
        self._rows = GrowingArray(folder / "originals.npy", (4,), "<i8", n_rows=n_rows)
        names = folder / "original-names.npy"
        self._names = GrowingArray(names, (), "|u1", n_rows=progress.name_bytes)
        self._last: tuple[str, int] | None = None
        self._tar: IO[bytes] | None = None
        if progress.kept:
            self._tar = self._tar_path(len(progress.kept) - 1).open("r+b")
            self._tar.truncate(progress.kept[-1])
            self._tar.seek(0, os.SEEK_END)

    def append(self, originals: Sequence[Original | bytes | None]) -> None:
        """Note k rows; equal neighbours (the views of an image) are kept once."""
        rows = np.full((len(originals), 4), -1, np.int64)
        for i, original in enumerate(originals):
            if i and original is not None and original is originals[i - 1]:
                rows[i] = rows[i - 1]
            elif isinstance(original, bytes):
                rows[i] = self._keep(original, self._rows.n_rows + i)
            elif original is not None:
                span = original.span
                size = -1 if span.size is None else span.size
                rows[i] = self._name(str(span.path)), span.start, size, original.digest
        self._rows.append(rows)

    def sync(self) -> None:
        """Everything appended survives a power cut."""
        self._rows.sync()
        self._names.sync()
        self._progress.name_bytes = self._names.n_rows
        if self._tar is not None:
            self._tar.flush()
            os.fsync(self._tar.fileno())
            self._progress.kept[-1] = self._tar.tell()

    def close(self) -> dict[str, Any] | None:
        """Complete the files; what the manifest says of them, nothing where no row has a file."""
        self._end_tar()
        entry = {"rows": self._rows.close(), "names": self._names.close()}
        if not self._names.n_rows:
            for file in entry.values():
                (self._folder / file["file"]).unlink()
            return None
        root = self._progress.root
        beside = os.path.relpath(root, self._folder.absolute()) if root else ""
        return {**entry, "root": root, "beside": beside}

    def abandon(self) -> None:
        """Let go of the files as they are."""
        self._rows.abandon()
        self._names.abandon()
        if self._tar is not None:
            with contextlib.suppress(OSError):
                self._tar.close()

    def _name(self, path: str) -> int:
        """Where the name of a file stands."""
        if self._last is None or self._last[0] != path:
            self._last = path, self._names.n_rows
            self._names.append(np.frombuffer(os.fsencode(path) + b"\n", np.uint8))
            root = self._progress.root
            if Path(path).is_absolute():
                self._progress.root = os.path.commonpath([root, path]) if root else path
        return self._last[1]

    def _keep(self, data: bytes, row: int) -> tuple[int, int, int, int]:
        """Add a copy to the tar that grows."""
        if self._tar is not None and self._tar.tell() + len(data) > self._limit:
            self._end_tar()
        if self._tar is None:
            self._tar = self._tar_path(len(self._progress.kept)).open("w+b")
            self._progress.kept.append(0)
        info = tarfile.TarInfo(f"{row:09d}.jpg")
        info.size = len(data)
        self._tar.write(info.tobuf(tarfile.USTAR_FORMAT))
        start = self._tar.tell()
        self._tar.write(data + bytes(-len(data) % TAR_BLOCK))
        return self._name(Path(self._tar.name).name), start, len(data), digest_of(data)

    def _end_tar(self) -> None:
        if self._tar is not None:
            self._tar.write(bytes(2 * TAR_BLOCK))
            self._tar.flush()
            os.fsync(self._tar.fileno())
            self._progress.kept[-1] = self._tar.tell()
            self._tar.close()
            self._tar = None

    def _tar_path(self, number: int) -> Path:
        return self._folder / f"{self._kept_name}-{number:05d}.tar"


def check_target(folder: Path) -> None:
    """Refuse a folder that holds anything but an unfinished preparation.

    Raises:
        UserError: it does, or it is a file.
    """
    if (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds a finished set: choose another folder or delete it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose a folder")
    others = folder.exists() and any(path.name != LOCK for path in folder.iterdir())
    if others and not (folder / STATE).exists():
        raise UserError(f"{folder} is not empty: choose another folder")


@contextlib.contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """A failed write inside becomes one line.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise write_error(folder, error) from error
