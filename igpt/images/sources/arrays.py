"""Sets that are arrays already: `.npz` and `.npy` files, read a block at a time."""

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from igpt.errors import UserError
from igpt.images.sources.source import MAX_LABEL, Block, Part, Source, array_blocks, block_length
from igpt.images.splits import TEST, TRAIN, VALID

_MAX_LABEL_BYTES = 2**30
# A header's claim of more bytes than this for one image is damage.
_MAX_IMAGE_BYTES = 2**28
_NPZ_NAMES = {
    TRAIN: (
        ("train_images", "train_labels"),
        ("x_train", "y_train"),
        ("images", "labels"),
        ("x", "y"),
        ("arr_0", "arr_1"),
    ),
    VALID: (("val_images", "val_labels"), ("valid_images", "valid_labels"), ("x_val", "y_val")),
    TEST: (("test_images", "test_labels"), ("x_test", "y_test")),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Images of one split, and their labels."""

    code: int
    shape: tuple[int, ...]
    """(N, H, W), (N, H, W, 1) or (N, H, W, 3)."""
    open: Callable[[], IO[bytes]]
    """A stream at the first pixel."""
    labels: np.ndarray | None
    """(N,) int."""
    name: str
    """Before each image's number, in its key."""
    is_planar: bool = False
    """Stored as (N, 3, W, H): channel after channel, column after column."""


def open_npz(path: Path) -> Source:
    """The arrays of an `.npz`: images with labels, or train, val and test of both.

    Raises:
        UserError: there are no uint8 images under a known name, or it is damaged.
    """
    with reading_arrays(path), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        pieces = []
        for code, choices in _NPZ_NAMES.items():
            pair = next((pair for pair in choices if pair[0] in names), None)
            if pair is not None:
                pieces.append(_npz_piece(path, archive, code, pair, has_labels=pair[1] in names))
        if not pieces:
            raise UserError(
                f"{path} has no array named images (or x_train, train_images, x, arr_0): rename it"
            )
    return pieces_source(path, pieces)


def open_npy(path: Path) -> Source:
    """The images of an `.npy` file.

    Raises:
        UserError: they are no uint8 images, or it is damaged.
    """
    with reading_arrays(path), path.open("rb") as file:
        shape = _image_header(file, str(path))
        start = file.tell()
        _check_held(shape, path.stat().st_size - start, str(path))

    def opened() -> IO[bytes]:
        stream = path.open("rb")
        stream.seek(start)
        return stream

    return pieces_source(path, [Piece(TRAIN, shape, opened, None, path.stem)])


def _npz_piece(
    path: Path, archive: zipfile.ZipFile, code: int, pair: tuple[str, str], *, has_labels: bool
) -> Piece:
    with archive.open(f"{pair[0]}.npy") as file:
        shape = _image_header(file, f"{path}: {pair[0]}")
        start = file.tell()
        held = archive.getinfo(f"{pair[0]}.npy").file_size - start
        _check_held(shape, held, f"{path}: {pair[0]}")
    labels = None
    if has_labels:
        with archive.open(f"{pair[1]}.npy") as file:
            labels = _label_array(file, shape[0], f"{path}: {pair[1]}")

    def opened() -> IO[bytes]:
        # The archive stays open as long as the stream: zipfile counts its users.
        with zipfile.ZipFile(path) as held:
            stream = held.open(f"{pair[0]}.npy")
        stream.read(start)
        return stream

    return Piece(code, shape, opened, labels, pair[0])


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if is_fortran:
        raise UserError("its arrays are in column order: save them in C order")
    return shape, dtype


def _image_header(file: IO[bytes], name: str) -> tuple[int, ...]:
    shape, dtype = _header(file)
    is_grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    if dtype != np.uint8 or not (is_grey or (len(shape) == 4 and shape[3] == 3)):
        raise UserError(f"{name} holds {shape} {dtype}: save (N, H, W, 3) uint8")
    return shape


def _check_held(shape: tuple[int, ...], n_bytes: int, name: str) -> None:
    """Refuse a header that claims other pixels than follow it, or none."""
    if min(shape) < 1 or math.prod(shape) > n_bytes:
        raise UserError(f"{name} claims {shape} uint8, but holds {n_bytes} bytes: fetch it again")


def _label_array(file: IO[bytes], n: int, name: str) -> np.ndarray:
    shape, dtype = _header(file)
    count = math.prod(shape)
    if dtype.kind not in "iu" or count != n or count * dtype.itemsize > _MAX_LABEL_BYTES:
        raise UserError(f"{name} holds {shape} {dtype}: save one whole number an image ({n})")
    labels = np.frombuffer(read_exactly(file, count * dtype.itemsize), dtype)
    return checked_labels(labels.astype(np.int64), name)


def checked_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """The labels, if they can be classes.

    Raises:
        UserError: one is negative or far too large.
    """
    if labels.min(initial=0) < 0 or labels.max(initial=0) > MAX_LABEL:
        raise UserError(f"{name} has labels outside 0 to {MAX_LABEL}: number the classes from 0")
    return labels


def pieces_source(path: Path, pieces: list[Piece], classes: tuple[str, ...] = ()) -> Source:
    """A source that reads its pieces one after another; no class names: numbered ones."""
    has_labels = all(piece.labels is not None for piece in pieces)

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        with reading_arrays(path):
            for piece in pieces:
                yield from _piece_blocks(piece)

    return Source(
        name=str(path),
        blocks=blocks,
        classes=classes if has_labels else None,
        own_splits=frozenset(piece.code for piece in pieces),
        n_images=sum(piece.shape[0] for piece in pieces),
    )


def _piece_blocks(piece: Piece) -> Iterator[Block]:
    """Blocks read one after another: the whole array is never in memory."""
    N, H, W = piece.shape[:3]
    image_bytes = int(np.prod(piece.shape[1:], dtype=object))
    if image_bytes > _MAX_IMAGE_BYTES:
        raise UserError(f"{piece.name} claims images of {image_bytes} bytes: it is damaged")
    with piece.open() as file:
        step = block_length(image_bytes)
        for start in range(0, N, step):
            n = min(step, N - start)
            pixels = np.frombuffer(read_exactly(file, n * image_bytes), np.uint8)
            if piece.is_planar:
                images = pixels.reshape(n, 3, W, H).transpose(0, 3, 2, 1)
            else:
                images = np.broadcast_to(pixels.reshape(n, H, W, -1), (n, H, W, 3))
            labels = None if piece.labels is None else piece.labels[start : start + n]
            for block in array_blocks(images, labels, code=piece.code, name=piece.name):
                keys = [f"{piece.name}/{start + i}" for i in range(len(block.keys))]
                yield Block(images=block.images, keys=keys, labels=block.labels, code=block.code)


def read_exactly(file: IO[bytes], n_bytes: int) -> bytes:
    """So many bytes; fewer are damage."""
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError("it is cut off")
    return data


@contextmanager
def reading_arrays(path: Path) -> Iterator[None]:
    """Whatever a damaged file raises inside becomes one line.

    Raises:
        UserError: it is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zip, gzip and npy headers, each with errors of its own
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
