"""Sets that are arrays already: `.npz` and `.npy` files, read some images at a time.

`igpt.images.levels` says which shapes and numbers are images, `igpt.images.sources.labels` which
are labels. An array of an `.npz` is known by the words of its name: one of a split, perhaps, and
one for images or labels (`x_train`, `train_images`, `labels`); a split that is alone is believed
too. Where no name says images, it is the only array that has their shape.

The authors' released data, images of one size as palette tokens in `NAME_{tr,va,te}{X,Y}.npy`, are
turned back into colours; under the same palette they become the same tokens again (PAPER §3.2).
"""

import contextlib
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from igpt.errors import UserError
from igpt.files import refuse_pointer
from igpt.images.levels import ACCEPTED, form_of, value_range
from igpt.images.sources.labels import label_key, labels_in, numbered, said_of_labels
from igpt.images.sources.source import Block, Source, array_blocks, block_length
from igpt.images.splits import (
    SPLIT_WORDS,
    TEST,
    TRAIN,
    VALID,
    said_of_splits,
    split_codes,
    split_words,
)

_MAX_LABEL_BYTES = 2**30
# A header's claim of more bytes than this for one image is damage.
_MAX_IMAGE_BYTES = 2**28
_IMAGE_NAMES = ("images", "image", "x", "imgs", "img", "data", "pixels", "pictures", "arr_0")
_LABELS_OF = {"arr_0": "arr_1"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Images of one split, and their labels."""

    code: int
    n: int
    images: Callable[[], Iterator[np.ndarray]]
    """All of them in order, some at a time: (k, H, W, 3) uint8."""
    labels: np.ndarray | None
    """(n,) numbers or words; None: there are none."""
    name: str
    """Before each image's number, in its key."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in a file, not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    open: Callable[[], IO[bytes]]
    """A stream at the first number."""
    held_bytes: int = 0
    """What follows the header."""
    is_fortran: bool = False
    """Its columns are stored one after another."""

    def check(self) -> None:
        """Refuse a header that claims other numbers than follow it, or none.

        Raises:
            UserError: it does, or the array is stored by columns.
        """
        if self.is_fortran and len(self.shape) > 1:
            raise UserError(f"{self.name} is in column order: save it in C order")
        if not math.prod(self.shape) or not self.shape:
            raise UserError(f"{self.name} holds {self.shape} {self.dtype}: there are no images")
        claimed = self.dtype.itemsize * math.prod(self.shape)
        if min(self.shape) < 1 or claimed > self.held_bytes:
            raise UserError(
                f"{self.name} claims {self.shape} {self.dtype}, but holds {self.held_bytes} bytes: "
                "fetch it again"
            )

    def rows(self) -> Iterator[np.ndarray]:
        """The array in its own form, some rows at a time: the whole is never in memory."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        if row_bytes > _MAX_IMAGE_BYTES:
            raise UserError(f"{self.name} claims images of {row_bytes} bytes: it is damaged")
        step = block_length(row_bytes)
        with self.open() as file:
            for start in range(0, self.shape[0], step):
                n = min(step, self.shape[0] - start)
                numbers = np.frombuffer(read_exactly(file, n * row_bytes), self.dtype)
                yield numbers.reshape(n, *self.shape[1:])

    def whole(self) -> np.ndarray:
        """All of it.

        Raises:
            UserError: it is too large for labels, or none.
        """
        if not self.dtype.hasobject:  # which `labels_in` would refuse, and nothing is unpickled
            self.check()
        n_bytes = self.dtype.itemsize * math.prod(self.shape)
        if n_bytes > _MAX_LABEL_BYTES or self.dtype.hasobject:
            raise UserError(
                f"{self.name} holds {self.shape} {self.dtype}: these are no labels; --unlabelled "
                "leaves them out"
            )
        with self.open() as file:
            return np.frombuffer(read_exactly(file, n_bytes), self.dtype).reshape(self.shape)


def open_npz(path: Path, *, unlabelled: bool = False, channels: tuple[int, ...] = ()) -> Source:
    """The arrays of an `.npz`: images, perhaps with labels, perhaps of several splits.

    Args:
        path: the file.
        unlabelled: leave labels out.
        channels: which become red, green and blue, or grey; empty: all.

    Raises:
        UserError: none is known as images, their form is none, or the file is damaged.
    """
    with reading_arrays(path), zipfile.ZipFile(path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        stored = {name: _member(path, archive, name) for name in names if _is_read(archive, name)}
        pairs = _pairs(stored, path)
        used = {name for pair in pairs.values() for name in pair}
        pieces = _pieces(
            path,
            [stored[image] for image, _ in pairs.values()],
            [None if unlabelled or not label else stored[label] for _, label in pairs.values()],
            list(pairs),
            channels,
        )
    left = [name for name in names if name not in used]
    said = [f"arrays that are not read: {', '.join(left)}"] if left else []
    return pieces_source(path, pieces, decided=said)


def open_npy(path: Path, *, channels: tuple[int, ...] = ()) -> Source:
    """The images of an `.npy` file; `channels` as in `open_npz`.

    Raises:
        UserError: they are no images, or it is damaged.
    """
    with reading_arrays(path), path.open("rb") as file:
        shape, dtype, is_fortran = _header(file)
        start = file.tell()

        def opened() -> IO[bytes]:
            stream = path.open("rb")
            stream.seek(start)
            return stream

        held_bytes = path.stat().st_size - start
        stored = Stored(path.stem, shape, dtype, opened, held_bytes, is_fortran)
        pieces = _pieces(path, [stored], [None], [TRAIN], channels)
    return pieces_source(path, pieces)


def _pieces(
    path: Path,
    images: Sequence[Stored],
    labels: Sequence[Stored | None],
    codes: Sequence[int],
    channels: tuple[int, ...],
) -> list[Piece]:
    try:
        low, high = _span(images)
        made = []
        for stored, label, code in zip(images, labels, codes, strict=True):
            n = stored.shape[0]
            held = None if label is None else labels_in(label.whole(), n, label.name)
            made.append(
                Piece(code, n, images_of_levels(stored, low, high, channels), held, stored.name)
            )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return made


def _span(images: Sequence[Stored]) -> tuple[float, float]:
    """The least and the greatest number of all arrays, which say together what a number means."""
    spans = [(0.0, 0.0)]
    for stored in images:
        if stored.dtype.kind not in "biuf":
            raise UserError(
                f"{stored.name} holds {stored.shape} {stored.dtype}: images are {ACCEPTED}; list "
                "paths of files in a .csv"
            )
        stored.check()
        if stored.dtype != np.uint8:
            spans += map(value_range, stored.rows())
    low, high = np.array(spans).T  # not Python's min, which may pass over NaN
    return float(low.min()), float(high.max())


def images_of_levels(
    stored: Stored, low: float = 0, high: float = 255, channels: tuple[int, ...] = ()
) -> Callable[[], Iterator[np.ndarray]]:
    """What reads an array as images, by `igpt.images.levels`.

    Args:
        stored: the array.
        low: least of its numbers; of levels of 8 bits it is no matter.
        high: greatest of its numbers.
        channels: which become red, green and blue, or grey; empty: all.

    Raises:
        UserError: it is in no form that is known.
    """
    try:
        form = form_of(stored.shape, stored.dtype, low, high, taken=channels)
    except UserError as error:
        raise UserError(f"{stored.name}: {error}") from error
    return lambda: map(form.images, stored.rows())


def _is_read(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether an array may hold images or labels, by its name or its number of axes."""
    rest, _ = _words(name)
    if rest in _IMAGE_NAMES or label_key([rest]) or name in _LABELS_OF.values():
        return True
    with contextlib.suppress(Exception), archive.open(f"{name}.npy") as file:
        return len(_header(file)[0]) in (3, 4)
    return False


def _words(name: str) -> tuple[str, str]:
    """What an array's name says besides a split, and that split's word."""
    split = next(iter(split_words(name)), "")
    kept = [part for part in name.lower().replace("-", "_").split("_") if part and part != split]
    return "_".join(kept), split


def _pairs(stored: dict[str, Stored], path: Path) -> dict[int, tuple[str, str]]:
    """Names of the images and of the labels ("" for none) by the code of their split.

    Raises:
        UserError: nothing is known as images.
    """
    said = {name: _words(name) for name in stored}
    kinds = {name: rest for name, (rest, _) in said.items()}
    images = sorted(
        (name for name in stored if kinds[name] in _IMAGE_NAMES),
        key=lambda name: _IMAGE_NAMES.index(kinds[name]),
    )
    if not images:
        shaped = [n for n in stored if len(stored[n].shape) in (3, 4) and not label_key([kinds[n]])]
        images = shaped if len(shaped) == 1 else []
    if not images:
        raise UserError(
            f"{path} has no array named images (or x_train, train_images, x, arr_0): rename it; "
            f"it holds {', '.join(sorted(stored)) or 'none of numbers'}"
        )
    words = {said[name][1] or "train" for name in images}
    # An array is named for what it holds: a test split that is alone is one all the same.
    codes = split_codes(words) or {word: SPLIT_WORDS[word] for word in words}
    found: dict[int, tuple[str, str]] = {}
    for name in images:
        code = codes[said[name][1] or "train"]
        same = {kinds[n]: n for n in stored if said[n][1] == said[name][1] and n not in images}
        key = label_key(same) or ""
        label = _LABELS_OF.get(name, "") if name in _LABELS_OF else same.get(key, "")
        found.setdefault(code, (name, label if label in stored else ""))
    return found


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Stored:
    with archive.open(f"{name}.npy") as file:
        shape, dtype, is_fortran = _header(file)
        start = file.tell()
    held_bytes = archive.getinfo(f"{name}.npy").file_size - start

    def opened() -> IO[bytes]:
        # The archive stays open as long as the stream: zipfile counts its users.
        with zipfile.ZipFile(path) as held:
            stream = held.open(f"{name}.npy")
        stream.read(start)
        return stream

    return Stored(name, shape, dtype, opened, held_bytes, is_fortran)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type, and whether it is stored by columns."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    return shape, dtype, is_fortran


def pieces_source(
    path: Path, pieces: list[Piece], *, names: Sequence[str] = (), decided: Sequence[str] = ()
) -> Source:
    """A source that reads its pieces one after another.

    Args:
        path: its name.
        pieces: of several splits, at most one each.
        names: of the classes, where the labels are places among them.
        decided: what else is to be said of it.
    """
    held = [piece.labels for piece in pieces if piece.labels is not None]
    classes, numbers = numbered(held, str(path), names=names)
    left = iter(numbers)
    codes = [None if piece.labels is None else next(left) for piece in pieces]
    is_labelled = bool(classes) and any((some >= 0).any() for some in numbers)
    n_images = sum(piece.n for piece in pieces)
    said = []
    if any(piece.code != TRAIN for piece in pieces):
        counts = {piece.code: piece.n for piece in pieces}
        said.append(said_of_splits("the names of arrays", counts))
    if is_labelled:
        n_labelled = sum(int((some >= 0).sum()) for some in numbers)
        said.append(
            said_of_labels(
                "arrays", n_labelled=n_labelled, n_images=n_images, n_classes=len(classes)
            )
        )

    def every_block() -> Iterator[Block]:
        with reading_arrays(path):
            for piece, labels in zip(pieces, codes, strict=True):
                yield from _blocks(piece, labels if is_labelled else None)

    return Source(
        name=str(path),
        blocks=lambda part: part.share(every_block()),
        classes=classes if is_labelled else None,
        own_splits=frozenset(piece.code for piece in pieces),
        n_images=n_images,
        decided=(*said, *decided),
    )


def _blocks(piece: Piece, labels: np.ndarray | None) -> Iterator[Block]:
    first = 0
    for images in piece.images():
        some = None if labels is None else labels[first : first + len(images)]
        yield from array_blocks(images, some, code=piece.code, name=piece.name, first=first)
        first += len(images)


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
        UserError: it is damaged, or a pointer in its place.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zip, gzip and npy headers, each with errors of its own
        refuse_pointer(path)
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error


PALETTE = "kmeans_centers.npy"
_FILE = re.compile(r"(.+)_(tr|va|te)([XY])\.npy")
_CODES = {"tr": TRAIN, "va": VALID, "te": TEST}
# Rows of a file that are in memory at a time.
_ROWS = 4096


def token_files(path: Path) -> list[Path]:
    """All files of the set that one of them belongs to, the palette among them; else none."""
    match = _FILE.fullmatch(path.name)
    if match is None or not path.is_file():
        return []
    parts = (f"{match[1]}_{split}{kind}.npy" for split in _CODES for kind in "XY")
    names = [*parts, PALETTE]
    return [found for name in names if (found := path.with_name(name)).is_file()]


def find_tokens(folder: Path) -> Source | None:
    """The one set of token files in a folder, if there is any.

    Raises:
        UserError: there are several, or a file is missing, damaged or holds anything else.
    """
    sets = {match[1]: path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}
    if len(sets) > 1:
        names = ", ".join(sorted(sets))
        raise UserError(f"{folder} holds several sets of tokens ({names}): name one of their files")
    return open_tokens(token_files(sets.popitem()[1])) if sets else None


def open_tokens(files: list[Path]) -> Source:
    """The set that `token_files` found; a split without its X file is left out.

    Raises:
        UserError: the palette is missing, or a file is damaged or holds anything else.
    """
    levels = _levels(files[0].with_name(PALETTE))
    prefix = _FILE.fullmatch(files[0].name)
    assert prefix is not None
    pieces = [
        _piece(files[0].parent, f"{prefix[1]}_{split}", code, levels)
        for split, code in _CODES.items()
        if files[0].with_name(f"{prefix[1]}_{split}X.npy").is_file()
    ]
    if not pieces:
        raise UserError(f"{files[0]} has labels only: put {prefix[1]}_teX.npy beside it")
    return pieces_source(files[0].with_name(prefix[1]), pieces)


def _levels(path: Path) -> np.ndarray:
    """The palette's colours as pixels, (K, 3) uint8."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the authors' palette beside their files, as tokens are "
            "colours only with it"
        )
    colors = _mapped(path)
    if colors.ndim != 2 or colors.shape[1] != 3 or colors.dtype.kind != "f":
        raise UserError(f"{path} holds {colors.shape} {colors.dtype}: a palette is (K, 3) float32")
    levels = np.rint(127.5 * (np.asarray(colors, np.float64) + 1))
    if not ((levels >= 0) & (levels <= 255)).all():
        raise UserError(f"{path} has colours outside [-1, 1]: it is no palette of the authors'")
    if len(np.unique(levels, axis=0)) < len(levels):
        raise UserError(f"{path} has two colours that are the same pixel: tokens would be mixed up")
    return levels.astype(np.uint8)


def _piece(folder: Path, stem: str, code: int, levels: np.ndarray) -> Piece:
    path = folder / f"{stem}X.npy"
    tokens = _mapped(path)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not len(tokens):
        raise UserError(f"{path} holds {tokens.shape} {tokens.dtype}: tokens are (N, T) integers")
    if math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
        raise UserError(f"{path}: {tokens.shape[1]} tokens make no square image")
    for start in range(0, len(tokens), _ROWS):
        rows = tokens[start : start + _ROWS]
        if rows.min() < 0 or rows.max() >= len(levels):
            raise UserError(
                f"{path} has tokens outside 0 to {len(levels) - 1}: the palette is another"
            )
    beside = folder / f"{stem}Y.npy"
    labels = labels_in(_mapped(beside), len(tokens), str(beside)) if beside.is_file() else None
    return Piece(code, len(tokens), lambda: _images(tokens, levels), labels, f"{stem}X")


def _mapped(path: Path) -> np.ndarray:
    with reading_arrays(path):
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _images(tokens: np.ndarray, levels: np.ndarray) -> Iterator[np.ndarray]:
    side = math.isqrt(tokens.shape[1])
    for start in range(0, len(tokens), _ROWS):
        yield levels[tokens[start : start + _ROWS]].reshape(-1, side, side, 3)
