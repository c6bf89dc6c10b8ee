"""A shuffled order of any number of images that takes no memory and can be entered anywhere."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from igpt import streams

_ROUNDS = 4


def shuffled(
    places: NDArray[np.int64], n: int, *, seed: int, name: str, epoch: int
) -> NDArray[np.int64]:
    """The images that stand at these places of an epoch's order: a permutation of 0 to n - 1.

    A Feistel network on pairs (left, right) with a * b >= n; an image outside 0 to n - 1 is sent
    through again until it lies inside, which keeps it a permutation. a * b - n < a, about the root
    of n, so that this is rare.

    Args:
        places: (B,) int64, each from 0 to n - 1.
        n: images in an epoch.
        seed: of the run.
        name: of the images, so that two sets are shuffled differently.
        epoch: each epoch has another order.

    Returns:
        (B,) int64, 0 to n - 1.
    """
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    rng = streams.stream(seed, f"order/{name}", epoch)
    keys = rng.integers(0, 2**64, (_ROUNDS, 2), np.uint64)
    images = _permuted(places.astype(np.uint64), a, b, keys)
    while (outside := np.flatnonzero(images >= n)).size:
        images[outside] = _permuted(images[outside], a, b, keys)
    return images.astype(np.int64)


def _permuted(
    values: NDArray[np.uint64], a: int, b: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of 0 to a * b - 1: each half is shifted by a hash of the other, in turns."""
    left, right = np.divmod(values, np.uint64(b))
    for left_key, right_key in keys:
        left = (left + _hashed(right, left_key, below=a)) % np.uint64(a)
        right = (right + _hashed(left, right_key, below=b)) % np.uint64(b)
    return left * np.uint64(b) + right


def _hashed(values: NDArray[np.uint64], key: np.uint64, *, below: int) -> NDArray[np.uint64]:
    """A hash of (value, key) from 0 to `below` - 1 (at most 2^32): splitmix64's last steps."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15) + key  # wraps, as it should
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    high: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)
    return (high * np.uint64(below)) >> np.uint64(32)
