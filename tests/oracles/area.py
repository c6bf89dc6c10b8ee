"""Area averaging, slow and obvious, in float64."""

import numpy as np


def area_average(
    image: np.ndarray, box: tuple[float, float, float, float], size: int
) -> np.ndarray:
    """Mean of the image over each cell of a `size` x `size` grid laid on a box.

    Args:
        image: (H, W, 3).
        box: top, left, bottom, right in pixels.
        size: cells a side.

    Returns:
        (size, size, 3) float64, not rounded.
    """
    top, left, bottom, right = box
    rows = _overlap(image.shape[0], np.linspace(top, bottom, size + 1))
    columns = _overlap(image.shape[1], np.linspace(left, right, size + 1))
    return np.einsum("jh,hwc,kw->jkc", rows, image.astype(np.float64), columns, optimize=True)


def _overlap(n: int, edges: np.ndarray) -> np.ndarray:
    weights = np.zeros((len(edges) - 1, n))
    for j in range(len(edges) - 1):
        for i in range(n):
            weights[j, i] = max(0.0, min(edges[j + 1], i + 1) - max(edges[j], i))
    return weights / weights.sum(1, keepdims=True)
