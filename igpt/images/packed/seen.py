"""Fingerprints of the images that a model was trained on: 8 bytes of blake2b of each one's pixels.

They lie as `seen.npy` in a run and in its model folder, so that an image which moved from training
to another split since is told, whatever its file is called now. They are not published.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from igpt.errors import UserError
from igpt.files import write_bytes

NAME = "seen.npy"
_AT_ONCE = 4096  # images
# 16 MB of fingerprints; the official sets beyond that bring splits of their own.
MOST = 2_000_000


def fingerprints(images: Any) -> np.ndarray:
    """(N, S, S, 3) uint8, read a block at a time -> (N,) uint64."""
    found = np.empty(len(images), np.uint64)
    for start in range(0, len(images), _AT_ONCE):
        block = np.ascontiguousarray(images[start : start + _AT_ONCE])
        digests = (hashlib.blake2b(image.data, digest_size=8).digest() for image in block)
        found[start : start + len(block)] = np.frombuffer(b"".join(digests), "<u8")
    return found


def united(*parts: np.ndarray | None) -> np.ndarray:
    """(N,) uint64, sorted, each once: the fingerprints of several sets of images."""
    return np.unique(np.concatenate([part for part in parts if part is not None]))


def n_seen(images: Any, seen: np.ndarray) -> int:
    """How many of some images are among those with the sorted fingerprints `seen`."""
    if not len(seen):
        return 0
    own = fingerprints(images)
    places = np.minimum(np.searchsorted(seen, own), len(seen) - 1)
    return int((seen[places] == own).sum())


def write_seen(folder: Path, seen: np.ndarray) -> None:
    """Write sorted fingerprints into a folder of a run or model."""
    data = io.BytesIO()
    np.save(data, seen)
    write_bytes(folder / NAME, data.getvalue())


def read_seen(folder: Path) -> np.ndarray | None:
    """The fingerprints in a folder; none where an earlier igpt wrote it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        seen: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and nothing is compared"
        ) from error
    if seen.dtype != np.uint64 or seen.ndim != 1:
        raise UserError(f"{path} holds no fingerprints: delete it, and nothing is compared")
    return seen


def line_of_seen(counts: Sequence[tuple[str, int, int]]) -> str:
    """`3 of 40 valid and 2 of 50 test images`; empty where there are no counts."""
    said = " and ".join(f"{n} of {total} {split}" for split, n, total in counts)
    return f"{said} images" if said else ""
