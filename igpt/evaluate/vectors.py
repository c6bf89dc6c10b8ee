"""Vectors of images in a file, written as they are made: memory does not grow with their number."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from igpt.files import writing
from igpt.probe.features import FeatureTarget

# Rows of parquet that are gathered before they are written: small groups read slowly.
GROUP_ROWS = 4096


@contextmanager
def writing_vectors(
    path: Path, names: Sequence[str], labels: Sequence[str], width: int
) -> Iterator[FeatureTarget]:
    """A target for `stream_features` of one layer that becomes the file `path`, or nothing at all.

    Args:
        path: ends in .npz (arrays path, label, vector) or .parquet (columns of these names).
        names: of all N images, in order.
        labels: of the same.
        width: D of a vector.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    with writing(path) as part:
        if path.suffix == ".npz":
            with zipfile.ZipFile(part, "w") as archive:
                for name, values in (("path", names), ("label", labels)):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.array(values), allow_pickle=False)
                with archive.open("vector.npy", "w", force_zip64=True) as file:
                    yield _NpyRows(file, len(names), width)
            return
        rows = _ParquetRows(part, names, labels, width)
        yield rows
        rows.close()


class _NpyRows:
    """(N, D) float32 in NumPy's format, row after row."""

    def __init__(self, file: IO[bytes], n: int, width: int) -> None:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
        np.lib.format.write_array_header_1_0(file, shape)
        self._file = file

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values[0], "<f4").data)


class _ParquetRows:
    """Groups of rows with the path, the label and the vector of each image."""

    def __init__(self, part: Path, names: Sequence[str], labels: Sequence[str], width: int) -> None:
        vector = pa.list_(pa.float32(), width)
        fields = [("path", pa.string()), ("label", pa.string()), ("vector", vector)]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(part, self._schema)
        self._names, self._labels = names, labels
        self._waiting: list[np.ndarray] = []
        self._written = 0

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        self._waiting.append(values[0])
        if place[1].stop - self._written >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        vectors = np.concatenate(self._waiting)
        rows = slice(self._written, self._written + len(vectors))
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=self._schema.field("vector").type
        )
        columns: list[Any] = [self._names[rows], self._labels[rows], column]
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._written, self._waiting = rows.stop, []

    def close(self) -> None:
        """Write what still waits, and the end of the file."""
        if self._waiting:
            self._write()
        self._writer.close()
