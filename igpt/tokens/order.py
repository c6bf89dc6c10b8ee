"""The order of training images: shuffled and mixed, without memory, entered anywhere."""

import math
from fractions import Fraction
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from igpt import streams
from igpt.errors import UserError

_ROUNDS = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
_HALF = np.uint64(32)


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
    side = isqrt(n - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-n // side))
    keys = _keys(seed, name, epoch)
    images = _permuted(places.astype(np.uint64), a, b, keys)
    while (outside := np.flatnonzero(images >= n)).size:
        images[outside] = _permuted(images[outside], a, b, keys)
    return images.astype(np.int64)


@lru_cache(maxsize=64)  # every batch of an epoch asks for the same ones
def _keys(seed: int, name: str, epoch: int) -> NDArray[np.uint64]:
    """Of each round's two hashes: (rounds, 2) uint64."""
    rng = streams.stream(seed, f"order/{name}", epoch)
    return rng.integers(0, 2**64, (_ROUNDS, 2), np.uint64)


def _permuted(
    values: NDArray[np.uint64], a: np.uint64, b: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of 0 to a * b - 1: each half is shifted by a hash of the other, in turns."""
    left, right = np.divmod(values, b)
    for left_key, right_key in keys:
        left = (left + _hashed(right, left_key, a)) % a
        right = (right + _hashed(left, right_key, b)) % b
    return left * b + right


def _hashed(values: NDArray[np.uint64], key: np.uint64, below: np.uint64) -> NDArray[np.uint64]:
    """A hash of (value, key) from 0 to `below` - 1; `below` is at most 2^32."""
    mixed = values + key  # this and the products wrap, as they should
    mixed *= _MULTIPLIER
    mixed ^= mixed >> _HALF
    mixed *= _MULTIPLIER
    mixed >>= _HALF
    mixed *= below
    mixed >>= _HALF
    return mixed


_MAX_PERIOD = 1_000_000


class Mixture:
    """Places dealt out to sources by weight, in a pattern that repeats every W places."""

    def __init__(self, weights: list[float]) -> None:
        """Spread W places evenly, source k having exactly its share of them.

        Args:
            weights: of the sources, above 0; only their proportions count.

        Raises:
            UserError: a weight is not above 0, or W would be above a million.
        """
        if not all(0 < weight < math.inf for weight in weights):
            raise UserError(f"the sources' weights are {weights}: each must be above 0")
        shares = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, as it was written
        common = math.lcm(*(share.denominator for share in shares))
        whole = [int(share * common) for share in shares]
        self._counts = np.array([count // math.gcd(*whole) for count in whole])  # (sources,)
        if self._counts.sum() > _MAX_PERIOD:
            raise UserError(f"the sources' weights {weights} have no simple ratio: round them")
        which = np.repeat(np.arange(len(weights)), self._counts)
        rank = np.concatenate([np.arange(count) for count in self._counts])
        order = np.argsort((2 * rank + 1) / self._counts[which], kind="stable")
        self._which, self._rank = which[order], rank[order]  # (W,) source; its place in the period

    def dealt(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which source each place of the stream falls to, and that source's how-manieth it is.

        Args:
            places: (B,) int64, counted from the run's start.

        Returns:
            two (B,) int64 arrays.
        """
        period, offset = np.divmod(places, len(self._which))
        which = self._which[offset]
        return which, period * self._counts[which] + self._rank[offset]
