"""Random changes to labelled images of which a classifier learns (paper §3.1)."""

import numpy as np
from numpy.typing import NDArray

from igpt.streams import Rng

N_DRAWS = 3
"""Random numbers that an image's change takes."""


def crop_and_flip(images: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    """The paper's CIFAR augmentation: reflect at the border, cut anywhere, mirror half of them.

    Args:
        images: (N, S, S, 3) uint8; each side grows by S / 8 pixels, which is the paper's 4 at 32.
        rng: draws one cut and one mirroring an image.

    Returns:
        (N, S, S, 3) uint8, new.
    """
    return cropped(images, rng.random((len(images), N_DRAWS)))


def cropped(images: NDArray[np.uint8], draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    """`crop_and_flip` by numbers drawn before.

    An image's change depends on its own row alone, so ranks can share out a batch and its draws.

    Args:
        images: (N, S, S, 3) uint8.
        draws: (N, 3) in [0, 1): where the cut begins, down and across; below a half: mirrored.

    Returns:
        (N, S, S, 3) uint8, new.
    """
    n, side = images.shape[:2]
    margin, last = side // 8, side - 1
    top, left = (draws[:, :2] * (2 * margin + 1)).astype(np.intp).T - margin  # (N,)
    steps = np.arange(side)
    across = np.where(draws[:, 2:] < 0.5, steps[::-1], steps)  # (N, S)
    rows = last - np.abs(last - np.abs(top[:, None] + steps))  # (N, S), reflected
    columns = last - np.abs(last - np.abs(left[:, None] + across))
    rows += side * np.arange(n)[:, None]
    # Seven times as fast as padding and indexing: whole pixels are moved, by their place in a row.
    pixels = np.ascontiguousarray(images).view("V3").reshape(-1)
    moved = pixels.take(side * rows[:, :, None] + columns[:, None, :], mode="clip")  # (N, S, S)
    changed: NDArray[np.uint8] = moved.view(np.uint8)
    return changed.reshape(images.shape)


def flipped(images: NDArray[np.uint8], draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Half of the images mirrored left to right, by the same numbers as `cropped`.

    Args:
        images: (N, S, S, 3) uint8.
        draws: (N, 3) in [0, 1); the last one below a half: mirrored.

    Returns:
        (N, S, S, 3) uint8, new.
    """
    pixels = np.array(images, order="C").view("V3")[..., 0]  # (N, S, S)
    mirrored = draws[:, 2] < 0.5
    pixels[mirrored] = pixels[mirrored][:, :, ::-1]
    return pixels[..., None].view(np.uint8)
