"""The authors' released data: images of one size as palette tokens, `NAME_{tr,va,te}{X,Y}.npy`.

Each token is turned back into its colour, so that every command reads these files as images; under
the same palette they become the same tokens again (PAPER §3.2).
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from igpt.errors import UserError
from igpt.images.sources.arrays import Piece, pieces_source, reading_arrays
from igpt.images.sources.labels import labels_in
from igpt.images.sources.source import Source
from igpt.images.splits import TEST, TRAIN, VALID

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
