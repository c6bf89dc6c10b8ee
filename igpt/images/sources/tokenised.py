"""The authors' released data: images of one size as palette tokens, `NAME_{tr,va,te}{X,Y}.npy`.

Each token is turned back into its colour, so that every command reads these files as images; under
the same palette they become the same tokens again (PAPER §3.2).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from igpt.errors import UserError
from igpt.images.sources.arrays import checked_labels, reading_arrays
from igpt.images.sources.source import Block, Part, Source, array_blocks
from igpt.images.splits import TEST, TRAIN, VALID

PALETTE = "kmeans_centers.npy"
_FILE = re.compile(r"(.+)_(tr|va|te)([XY])\.npy")
_CODES = {"tr": TRAIN, "va": VALID, "te": TEST}
# Rows of a file that are in memory at a time.
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class _Piece:
    """One split."""

    code: int
    tokens: np.ndarray
    """(N, T) integers, on disk."""
    labels: np.ndarray | None
    """(N,) int64."""
    name: str


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
        _piece(files[0].parent, f"{prefix[1]}_{split}", code, n_colors=len(levels))
        for split, code in _CODES.items()
        if files[0].with_name(f"{prefix[1]}_{split}X.npy").is_file()
    ]
    if not pieces:
        raise UserError(f"{files[0]} has labels only: put {prefix[1]}_teX.npy beside it")

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        for piece in pieces:
            yield from _blocks(piece, levels)

    return Source(
        name=str(files[0].with_name(prefix[1])),
        blocks=blocks,
        classes=() if all(piece.labels is not None for piece in pieces) else None,
        own_splits=frozenset(piece.code for piece in pieces),
        n_images=sum(len(piece.tokens) for piece in pieces),
    )


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


def _piece(folder: Path, stem: str, code: int, *, n_colors: int) -> _Piece:
    path = folder / f"{stem}X.npy"
    tokens = _mapped(path)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not len(tokens):
        raise UserError(f"{path} holds {tokens.shape} {tokens.dtype}: tokens are (N, T) integers")
    if math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
        raise UserError(f"{path}: {tokens.shape[1]} tokens make no square image")
    for start in range(0, len(tokens), _ROWS):
        rows = tokens[start : start + _ROWS]
        if rows.min() < 0 or rows.max() >= n_colors:
            raise UserError(
                f"{path} has tokens outside 0 to {n_colors - 1}: the palette is another"
            )
    return _Piece(code, tokens, _labels(folder / f"{stem}Y.npy", len(tokens)), f"{stem}X")


def _labels(path: Path, n: int) -> np.ndarray | None:
    """(N,) int64 of numbers, or of the released one-hot rows; none where there is no file."""
    if not path.is_file():
        return None
    held = _mapped(path)
    if held.ndim not in (1, 2) or len(held) != n or held.dtype.kind not in "iufb":
        raise UserError(f"{path} holds {held.shape} {held.dtype}: it needs a label an image ({n})")
    if held.ndim == 1:
        return checked_labels(held.astype(np.int64), str(path))
    parts = (held[start : start + _ROWS] for start in range(0, n, _ROWS))
    return np.concatenate([_one_hot(rows, path) for rows in parts])


def _one_hot(rows: np.ndarray, path: Path) -> np.ndarray:
    if not ((rows != 0).sum(axis=1) == 1).all():
        raise UserError(f"{path} is not one-hot: each row must have a single 1")
    return np.asarray(rows.argmax(axis=1))


def _mapped(path: Path) -> np.ndarray:
    with reading_arrays(path):
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _blocks(piece: _Piece, levels: np.ndarray) -> Iterator[Block]:
    side = math.isqrt(piece.tokens.shape[1])
    for start in range(0, len(piece.tokens), _ROWS):
        rows = slice(start, start + _ROWS)
        images = levels[piece.tokens[rows]].reshape(-1, side, side, 3)
        labels = None if piece.labels is None else piece.labels[rows]
        yield from array_blocks(images, labels, code=piece.code, name=piece.name, first=start)
