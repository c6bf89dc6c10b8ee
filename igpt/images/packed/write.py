"""Writing a packed set piece by piece, so that a killed preparation goes on where it was."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igpt.errors import UserError
from igpt.files import read_json, sha256_of, sync_folder, write_error, write_json
from igpt.images.packed.format import FORMAT, MANIFEST, SCHEMA_VERSION

SHARD_BYTES = 2**30
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
    shards: list[dict[str, Any]] = field(default_factory=list)
    """Finished shards, as in the manifest."""
    shard_rows: int = 0
    """Rows in the shard that grows."""
    n_read: int = 0
    """Images tried."""
    reject_bytes: int = 0
    """Length of rejects.csv."""
    largest_label: int = -1
    """The highest label stored."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejects by reason."""


class PackWriter:
    """Appends blocks to a packed set; each `commit` is a point that a later process can go on from.

    Args:
        folder: the packed set to be.
        image_size: side S in pixels.
        settings: everything the stored bytes depend on; a continuation must agree.
        shard_bytes: most bytes of images in a shard.

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

    def append(self, images: np.ndarray, labels: np.ndarray, codes: np.ndarray) -> None:
        """Store (k, S, S, 3) uint8 images with (k,) labels (-1: none) and (k,) split codes."""
        self.progress.largest_label = max(self.largest_label, int(labels.max(initial=-1)))
        with writing_into(self.folder):
            self._labels.append(labels)
            self._codes.append(codes)
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
            for array in (self._shard, self._labels, self._codes):
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
                "n_read": self.progress.n_read,
                "rejects": self.progress.reasons,
            }
            sync_folder(self.folder)
            write_json(self.folder / MANIFEST, manifest)
            (self.folder / STATE).unlink()
            (self.folder / LOCK).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Let go of the files; what was committed stays."""
        for array in (self._shard, self._labels, self._codes):
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
