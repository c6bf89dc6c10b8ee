"""Vectors of images in a file, written as they are made: memory does not grow with their number."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from igpt.errors import UserError
from igpt.files import check_room, writing
from igpt.probing.features import LEFT_OUT, FeatureTarget

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
        width: D of a vector; one of `LEFT_OUT` is not written, nor its name and label.

    Raises:
        UserError: pyarrow is missing for parquet, the disk is full, or the place cannot be written.
    """
    check_room(path, 4 * width * len(names), f"{len(names):,} vectors")
    kind = _NpzRows if path.suffix.lower() == ".npz" else _ParquetRows
    with writing(path) as part, kind(part, names, labels, width) as rows:
        yield rows
        rows.finish()


def is_image(vectors: np.ndarray) -> np.ndarray:
    """Which of (n, D) vectors stand for an image: (n,) bool."""
    return (vectors != LEFT_OUT).any(axis=1)  # type: ignore[no-any-return]


class _NpzRows:
    """(n, D) float32 beside path and label; their number is known only at the end."""

    def __init__(self, part: Path, names: Sequence[str], labels: Sequence[str], width: int) -> None:
        self._part, self._width = part, width
        self._good = np.zeros(len(names), bool)
        self._columns = {"path": names, "label": labels}
        self._raw = tempfile.TemporaryFile(dir=part.parent)  # noqa: SIM115

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        self._good[place[1]] = is_image(values[0])
        kept = values[0][self._good[place[1]]]
        self._raw.write(np.ascontiguousarray(kept, "<f4").data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def finish(self) -> None:
        """Put the file together."""
        self._raw.seek(0)
        with zipfile.ZipFile(self._part, "w") as archive:
            for name, values in self._columns.items():
                kept = np.array(
                    [v for v, good in zip(values, self._good, strict=True) if good], str
                )
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, kept, allow_pickle=False)
            with archive.open("vector.npy", "w", force_zip64=True) as file:
                shape = (int(self._good.sum()), self._width)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(self._raw, file)


class _ParquetRows:
    """Groups of rows with the path, the label and the vector of each image."""

    def __init__(self, part: Path, names: Sequence[str], labels: Sequence[str], width: int) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UserError(
                "a .parquet file needs pyarrow: pip install 'igpt[parquet]', or write .npz"
            ) from error
        self._pa = pa
        vector = pa.list_(pa.float32(), width)
        fields = [("path", pa.string()), ("label", pa.string()), ("vector", vector)]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(part, self._schema)
        self._names, self._labels = names, labels
        self._places: list[int] = []
        self._waiting: list[np.ndarray] = []

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        good = is_image(values[0])
        self._waiting.append(values[0][good])
        self._places += (np.flatnonzero(good) + place[1].start).tolist()
        if len(self._places) >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        vectors = np.concatenate(self._waiting)
        column = self._pa.FixedSizeListArray.from_arrays(
            self._pa.array(vectors.reshape(-1)), type=self._schema.field("vector").type
        )
        columns: list[Any] = [
            [self._names[i] for i in self._places],
            [self._labels[i] for i in self._places],
            column,
        ]
        self._writer.write_table(self._pa.table(columns, schema=self._schema))
        self._places, self._waiting = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def finish(self) -> None:
        """Write what still waits."""
        if self._places:
            self._write()
