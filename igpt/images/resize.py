"""Exact area averaging: whole numbers as weights, so that only the last division rounds.

Sums are exact; the division rounds to nearest, ties to even.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Sums of uint8 times whole weights are exact in these types below these.
_EXACT_FLOAT32 = 2**24
_EXACT_FLOAT64 = 2**53
# In float32, quotients below 256 by up to this differ from every tie by more than they are rounded.
_EXACT_QUOTIENT = 2**15
# Values converted to floats at once: they stay in the processor's cache.
_BAND_VALUES = 2**16


@dataclass(frozen=True, slots=True)
class AxisMap:
    """How the pixels from `start` of one axis become `len(weights)` pixels.

    Args:
        start: first pixel read.
        weights: (size, k) whole numbers, of the k pixels from `start`; every row sums to `total`.
            float32 where sums of uint8 times them are exact in it, else float64.
        total: what divides.
    """

    start: int
    weights: np.ndarray
    total: int


@lru_cache(256)
def axis_map(
    n: int, size: int, *, resized: int = 0, start: int = 0, crop: int = 0, scale: int = 1
) -> AxisMap:
    """Area averaging along one axis: resize to `resized`, keep `crop` from `start`, then `size`.

    Args:
        n: pixels of the full axis.
        size: pixels of the result; more than there are makes blocks of them.
        resized: pixels after the first resize; 0: n.
        start: first pixel kept of those.
        crop: how many are kept; 0: all.
        scale: the map reads an axis of ceil(n / scale) pixels, each standing for `scale`.
    """
    resized = resized or n
    crop = crop or resized
    # Everything in units of 1 / (size * resized) of a pixel of the full axis.
    edges = (start * size + np.arange(size + 1) * crop) * n
    unit = size * resized
    left, right = edges[:-1, None], edges[1:, None]
    first_read = left // (unit * scale)  # (size, 1): of each result's pixels
    most = int((-(-right // (unit * scale)) - first_read).max())
    read = first_read + np.arange(most)  # (size, most)
    begins, ends = np.minimum(read * scale, n) * unit, np.minimum((read + 1) * scale, n) * unit
    overlap = np.maximum(np.minimum(ends, right) - np.maximum(begins, left), 0)
    divisor = math.gcd(n * math.gcd(start * size, crop), unit)
    total = crop * n // divisor
    first, stop = int(first_read[0, 0]), -(-int(edges[-1]) // (unit * scale))
    # Room behind the last pixel for columns of `read` that overlap nothing.
    weights: np.ndarray = np.zeros((size, stop - first + most), _exact_float(total))
    weights[np.arange(size)[:, None], read - first] = overlap // divisor
    return AxisMap(first, weights[:, : stop - first], total)


def _exact_float(total: int) -> type[np.float32] | type[np.float64]:
    """The smaller type in which sums of uint8 by weights of this sum do not round."""
    assert 255 * total < _EXACT_FLOAT64, "sums would round"
    return np.float32 if 255 * total < _EXACT_FLOAT32 else np.float64


def apply_maps(images: np.ndarray, rows: AxisMap, columns: AxisMap) -> np.ndarray:
    """Both axes averaged: (N, H, W, 3) uint8 -> (N, h, w, 3) uint8."""
    total = rows.total * columns.total
    dtype = _exact_float(total)
    across = columns.weights.T.astype(dtype, copy=False)  # (W, w)
    W, width = across.shape
    height, H = rows.weights.shape
    images = images[:, rows.start : rows.start + H, columns.start : columns.start + W]
    N, _, _, C = images.shape
    result = np.empty((N, height, width, C), np.uint8)
    batch = max(1, _BAND_VALUES // (H * W * C))
    step = height if batch > 1 else max(1, height * _BAND_VALUES // (H * W * C))
    for j in range(0, height, step):
        part = rows.weights[j : j + step]
        used = np.flatnonzero(part.any(0))
        i, stop = int(used[0]), int(used[-1]) + 1
        down: np.ndarray = part[:, i:stop]
        for begin in range(0, N, batch):
            band: np.ndarray = images[begin : begin + batch, i:stop].astype(down.dtype)
            band = np.matmul(down, band.reshape(len(band), stop - i, W * C))  # (n, step, W * 3)
            turned: np.ndarray = np.empty((len(band), len(part), C, W), dtype)
            turned[:] = band.reshape(len(band), len(part), W, C).swapaxes(2, 3)
            sums: np.ndarray = turned.reshape(-1, W) @ across  # (n * step * 3, w)
            if total > _EXACT_QUOTIENT:
                sums = sums.astype(np.float64)
            sums /= total
            out = result[begin : begin + batch, j : j + step]
            out[:] = np.rint(sums, sums).reshape(len(out), len(part), C, width).swapaxes(2, 3)
    return result


def area_resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images at another size by exact area averaging, rounded to nearest.

    Args:
        images: (..., H, W, 3) uint8.
        size: pixels a side of the result; above H or W, pixels become blocks.

    Returns:
        (..., size, size, 3) uint8; the images themselves where they have this size.
    """
    *lead, H, W, C = images.shape
    if H == W == size:
        return images
    flat = images.reshape(-1, H, W, C)
    return apply_maps(flat, axis_map(H, size), axis_map(W, size)).reshape(*lead, size, size, C)
