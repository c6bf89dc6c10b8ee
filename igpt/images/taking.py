"""Images of any kind that a caller may hand over, as one array at a model's size."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.images.crop import center_square
from igpt.images.decode import read_image
from igpt.images.resize import area_resize
from igpt.progress import say

# Images of more than so many times the model's side lose nearly all detail.
FAR = 8

Images = np.ndarray | Image.Image | str | Path | Sequence["np.ndarray | Image.Image | str | Path"]


def as_squares(images: Images, side: int) -> np.ndarray:
    """Any images cut to their centre square and resized: (N, S, S, 3) uint8.

    Raises:
        UserError: there are none, or one cannot be read or has another shape or type.
    """
    squares, shorter_px = [], []
    for image in _each(images):  # one after another, so that few large ones are held at a time
        array = _array(image)
        squares.append(square(array, side))
        shorter_px.append(min(array.shape[:2]))
    if not squares:
        raise UserError("there are no images: pass at least one")
    warn_of_sizes(shorter_px, side)
    return np.stack(squares)


def _each(images: Images) -> Iterable[np.ndarray | Image.Image | str | Path]:
    if isinstance(images, np.ndarray):
        return images[None] if images.ndim == 3 else images
    if isinstance(images, Image.Image | str | Path):
        return [images]
    return images


def _array(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """One image of any kind: (H, W, 3) uint8."""
    array = image if isinstance(image, np.ndarray) else read_image(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise UserError(
            f"an image is {array.shape} {array.dtype}: "
            "pass (H, W, 3) uint8 arrays, PIL images or paths"
        )
    return array


def square(array: np.ndarray, side: int) -> np.ndarray:
    """An image at the model's size: (H, W, 3) -> (S, S, 3) uint8."""
    return array if array.shape[:2] == (side, side) else area_resize(center_square(array), side)


def warn_of_sizes(shorter_px: Sequence[int], side: int) -> None:
    """Say where images are so far from the model's size that it cannot see what they show."""
    far = [px for px in shorter_px if not side <= px <= FAR * side]
    if far:
        say(
            f"warning: {len(far)} of {len(shorter_px)} images are far from the {side} x {side} "
            f"pixels that this model was trained on ({min(far)} to {max(far)} on the shorter "
            "side): detail is lost or made up, and features and likelihoods mean less"
        )
