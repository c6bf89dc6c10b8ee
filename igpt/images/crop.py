"""Which square of an image is taken (paper §3.1), and its reduction to the input resolution.

Resizing to a shorter side of 224 by area averaging, cropping, and averaging again down to the input
resolution is the average over the same places of the original, so that is what is taken, at once.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from igpt.images.resize import AxisMap, apply_maps, axis_map

CROP_SIZE = 224
RANDOM_SIDES = (256, 384)
# A JPEG decoded at a reduced scale keeps this many pixels for each one of the result: measured,
# see `igpt bench data`; the mean error against full decoding stays below 1 level.
REDUCED_MARGIN = 2.25


def enough_px(size: int, *, is_cropped: bool = False) -> int:
    """Pixels that the shorter side of a JPEG must keep when it is decoded at a fraction.

    Args:
        size: pixels a side of the result.
        is_cropped: at random, which magnifies most at the largest shorter side.
    """
    magnified = RANDOM_SIDES[1] / CROP_SIZE if is_cropped else 1.0
    return math.ceil(REDUCED_MARGIN * size * magnified)


def center_square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle: (H, W, 3) -> (n, n, 3), a view."""
    H, W = image.shape[:2]
    side = min(H, W)
    top, left = (H - side) // 2, (W - side) // 2
    return image[top : top + side, left : left + side]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A square of an image: the image resized, then `side` x `side` pixels from (top, left)."""

    height: int
    """Of the full image, in pixels."""
    width: int
    """Of the full image, in pixels."""
    resized: tuple[int, int]
    """Height and width after the first resize."""
    top: int
    """First row kept of those."""
    left: int
    """First column kept of those."""
    side: int
    """Rows and columns kept."""


def _resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    least = min(height, width)
    return round(height * shorter / least), round(width * shorter / least)


@lru_cache(1024)
def center_crop(height: int, width: int) -> Crop:
    """Evaluation's crop: shorter side 224, the 224 x 224 in the middle (paper §3.1).

    An image smaller than that keeps its whole centre square.
    """
    side = min(height, width, CROP_SIZE)
    tall, wide = _resized(height, width, side)
    return Crop(
        height=height,
        width=width,
        resized=(tall, wide),
        top=(tall - side) // 2,
        left=(wide - side) // 2,
        side=side,
    )


def random_crop(height: int, width: int, rng: np.random.Generator) -> Crop:
    """Training's crop: shorter side random in [256, 384], a random 224 x 224 (paper §3.1)."""
    tall, wide = _resized(height, width, int(rng.integers(RANDOM_SIDES[0], RANDOM_SIDES[1] + 1)))
    return Crop(
        height=height,
        width=width,
        resized=(tall, wide),
        top=int(rng.integers(tall - CROP_SIZE + 1)),
        left=int(rng.integers(wide - CROP_SIZE + 1)),
        side=CROP_SIZE,
    )


def crop_resize(image: np.ndarray, crop: Crop, size: int, *, scale: int = 1) -> np.ndarray:
    """One crop of an image, area-averaged to the input resolution.

    Args:
        image: (H, W, 3) uint8, possibly decoded at a reduced scale.
        crop: the square, in terms of the full image.
        size: pixels a side of the result.
        scale: pixels of the full image, along an axis, that one of `image` stands for.

    Returns:
        (size, size, 3) uint8.
    """
    square: np.ndarray = apply_maps(image[None], *crop_maps(crop, size, scale=scale))[0]
    return square


def crop_maps(crop: Crop, size: int, *, scale: int = 1) -> tuple[AxisMap, AxisMap]:
    """The maps of rows and of columns that take a crop to `size` pixels a side."""
    tall, wide = crop.resized
    side = crop.side
    return (
        axis_map(crop.height, size, resized=tall, start=crop.top, crop=side, scale=scale),
        axis_map(crop.width, size, resized=wide, start=crop.left, crop=side, scale=scale),
    )
