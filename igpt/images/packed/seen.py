"""Which images a model was trained on: a run keeps a hash of each, to know them when they return.

Files that are added to a folder, removed from it or moved change which of its images are drawn for
validation and test, so images of training could be judged as new ones.
"""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.files import write_bytes
from igpt.images.packed.read import PackedImages, PackedSet
from igpt.images.splits import Split

NAME = "seen.npy"
# 16 MB of hashes; the official sets beyond that bring splits of their own.
MOST = 2_000_000
BLOCK = 4096


def hashes(images: PackedImages) -> NDArray[np.uint64]:
    """64 bits of the pixels of each image: (n,)."""
    found = bytearray()
    for start in range(0, len(images), BLOCK):
        for image in images[start : start + BLOCK]:
            found += hashlib.blake2b(image.tobytes(), digest_size=8).digest()
    return np.frombuffer(bytes(found), np.uint64)


def keep_seen(run: Path, trained_on: Iterable[PackedImages]) -> None:
    """Write what a run learns from beside it; of more than `MOST` images nothing is kept."""
    sets = list(trained_on)
    if sum(map(len, sets)) > MOST:
        return
    file = io.BytesIO()
    np.save(file, np.unique(np.concatenate([hashes(images) for images in sets])))
    write_bytes(run / NAME, file.getvalue())


def seen_of(packed: PackedSet, split: Split, run: Path) -> int | None:
    """How many images of a split a run was trained on; none: it kept no hashes."""
    try:
        known = np.load(run / NAME, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return int(np.isin(hashes(packed.images(split)), known).sum())
