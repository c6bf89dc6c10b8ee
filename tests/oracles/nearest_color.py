"""The nearest colour by comparing all of them, in float64."""

import numpy as np


def nearest_color(pixels, colors):
    """(n,) int64: for pixels (n, 3) uint8 the lowest index of the nearest of colors (K, 3)."""
    found = np.empty(len(pixels), np.int64)
    for i in range(0, len(pixels), 1000):
        x = pixels[i : i + 1000].astype(np.float64) / 127.5 - 1  # (1000, 3)
        gap = x[:, None] - colors.astype(np.float64)[None]  # (1000, K, 3)
        found[i : i + 1000] = (gap**2).sum(axis=2).argmin(axis=1)
    return found
