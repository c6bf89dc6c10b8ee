"""Random changes to labelled images of which a classifier learns (paper §3.1)."""

import numpy as np
from numpy.typing import NDArray

from igpt.streams import Rng


def crop_and_flip(images: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    """The paper's CIFAR augmentation: reflect at the border, cut anywhere, mirror half of them.

    Args:
        images: (N, S, S, 3) uint8; each side grows by S / 8 pixels, which is the paper's 4 at 32.
        rng: draws one cut and one mirroring an image.

    Returns:
        (N, S, S, 3) uint8, new.
    """
    n, side = images.shape[:2]
    margin = side // 8
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * margin + 1, (2, n))
    mirrored = rng.random(n) < 0.5
    rows = top[:, None] + np.arange(side)  # (N, S)
    columns = left[:, None] + np.where(mirrored[:, None], np.arange(side)[::-1], np.arange(side))
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
