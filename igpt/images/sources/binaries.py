"""idx files (MNIST, Fashion-MNIST), gzipped or not, and STL-10's official binary files."""

import gzip
import hashlib
import shutil
import tarfile
from pathlib import Path
from typing import IO, cast

import numpy as np

from igpt.errors import UserError
from igpt.files import cache_folder, writing
from igpt.images.sources.arrays import (
    Piece,
    Stored,
    images_of_levels,
    pieces_source,
    read_exactly,
    reading_arrays,
)
from igpt.images.sources.download import Remote, alone, fetch
from igpt.images.sources.source import Source
from igpt.images.splits import TEST, TRAIN

FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# The unpacked training labels of Fashion-MNIST tell it from MNIST, whose files have the same names.
_FASHION_LABELS_MD5 = "9018921c3c673c538a1fc5bad174d6f9"
SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_MAX_IDX_IMAGES = 10_000_000

STL10_SIDE = 96
_STL10_MD5 = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
_STL10_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)
_STL10 = Remote(
    name="stl10_binary.tar.gz",
    addresses=("https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
    n_bytes=0,
    algorithm="md5",
    digest="91f7769df0f17e558f3565bffb0c7dfb",
)


def open_fashion_mnist() -> Source:
    """Fashion-MNIST by name, where the system's package of it is installed.

    Raises:
        UserError: it is not.
    """
    source = find_idx(SYSTEM_FASHION) if SYSTEM_FASHION.is_dir() else None
    if source is None:
        raise UserError(
            "fashion-mnist is not installed here: install the package dataset-fashion-mnist, or "
            "pass the folder of its four idx files as DATA"
        )
    return source


def find_idx(folder: Path) -> Source | None:
    """The idx files of MNIST's form in a folder, if the training images are there.

    Raises:
        UserError: a file is damaged.
    """
    if _idx_file(folder, "train-images-idx3-ubyte") is None:
        return None
    with reading_arrays(folder):
        pieces = [
            _idx_piece(folder, code, prefix)
            for code, prefix in ((TRAIN, "train"), (TEST, "t10k"))
            if _idx_file(folder, f"{prefix}-images-idx3-ubyte") is not None
        ]
    held = b"" if pieces[0].labels is None else _label_bytes(pieces[0].labels)
    digest = hashlib.md5(held, usedforsecurity=False).hexdigest()
    is_fashion = digest == _FASHION_LABELS_MD5
    return pieces_source(folder, pieces, names=FASHION_CLASSES if is_fashion else ())


def _label_bytes(labels: np.ndarray) -> bytes:
    header = np.array([_IDX_LABELS, len(labels)], ">u4").tobytes()
    return header + labels.astype(np.uint8).tobytes()


def _idx_file(folder: Path, name: str) -> Path | None:
    choices = (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx"))
    return next((path for path in choices if path.is_file()), None)


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _idx_piece(folder: Path, code: int, prefix: str) -> Piece:
    images = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
    labels = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    assert images is not None
    with _opened(images) as file:
        magic, n, height, width = _words(file, 4)
    if magic != _IDX_IMAGES or not 0 < n <= _MAX_IDX_IMAGES:
        raise ValueError(f"{images.name} is no idx file of images")
    values = None if labels is None else _idx_labels(labels, n)

    def opened() -> IO[bytes]:
        stream = _opened(images)
        stream.read(16)
        return stream

    stored = Stored(images.name, (n, height, width), np.dtype(np.uint8), opened)
    return Piece(code, n, images_of_levels(stored), values, images.name)


def _idx_labels(path: Path, n: int) -> np.ndarray:
    with _opened(path) as file:
        magic, n_labels = _words(file, 2)
        if magic != _IDX_LABELS or n_labels != n:
            raise ValueError(f"{path.name} does not hold {n} labels")
        return np.frombuffer(read_exactly(file, n), np.uint8)


def _words(file: IO[bytes], count: int) -> list[int]:
    return [int(word) for word in np.frombuffer(read_exactly(file, 4 * count), ">u4")]


def open_stl10() -> Source:
    """STL-10 by name: its labelled images, from the official archive (2.6 GB).

    Raises:
        UserError: it cannot be fetched.
    """
    folder = cache_folder() / "downloads" / "stl10_binary"
    with alone(folder.parent, folder.name):  # the archive goes as soon as it is unpacked
        if not all((folder / name).is_file() for name in _STL10_MD5):
            _unpack_stl10(folder)
    source = find_stl10(folder)
    assert source is not None
    return source


def _unpack_stl10(folder: Path) -> None:
    archive = fetch(_STL10, folder.parent)
    with reading_arrays(archive), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            held = tar.extractfile(member) if name in _STL10_MD5 else None
            if held is not None:
                with writing(folder / name) as part, part.open("wb") as file:
                    shutil.copyfileobj(held, file)
    archive.unlink()


def find_stl10(folder: Path) -> Source | None:
    """STL-10's official binary files in a folder; the unlabelled images are ignored (paper §3.1).

    Raises:
        UserError: a file is damaged.
    """
    if not all((folder / name).is_file() for name in ("train_X.bin", "train_y.bin")):
        return None
    with reading_arrays(folder):
        pieces = [
            _stl10_piece(folder, code, prefix)
            for code, prefix in ((TRAIN, "train"), (TEST, "test"))
            if (folder / f"{prefix}_X.bin").is_file()
        ]
    return pieces_source(folder, pieces, names=_STL10_CLASSES)


def _stl10_piece(folder: Path, code: int, prefix: str) -> Piece:
    path = folder / f"{prefix}_X.bin"
    values = np.fromfile(folder / f"{prefix}_y.bin", np.uint8).astype(np.int64) - 1  # 1 to 10
    n, rest = divmod(path.stat().st_size, 3 * STL10_SIDE**2)
    if rest or n != len(values):
        raise ValueError(f"{path.name} does not hold {len(values)} images")
    shape = (n, 3, STL10_SIDE, STL10_SIDE)
    stored = Stored(path.name, shape, np.dtype(np.uint8), lambda: path.open("rb"))
    upright = images_of_levels(stored)  # they are stored column after column
    return Piece(code, n, lambda: (some.swapaxes(1, 2) for some in upright()), values, path.name)
