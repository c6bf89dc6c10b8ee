"""Arrays of any shape and number type to (N, H, W, 3) uint8: one rule for files and callers.

Shapes: (N, H, W) is grey (of a width of 3 or 4 only squares: else it is one image, not many);
(N, H, W, C) and (N, C, H, W) have 1 (grey), 3 (RGB) or 4 channels (RGB and alpha, laid over white);
(N, L) are square images as rows, L = H * W or H * W * 3, pixel after pixel. Of more channels, and
of these if it is wished, the caller says which become red, green and blue, or grey.

Values: booleans are black and white; whole numbers are levels from 0 to 255, or of 16 bits where
one is above 255; floats lie from 0 to 1, else from -1 to 1, else from 0 to 255. What a whole array
holds decides, not a part of it. Anything else is refused by a line that says what was seen.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from igpt.errors import UserError

CHANNELS = (1, 3, 4)
ACCEPTED = (
    "(N, H, W), (N, H, W, C), (N, C, H, W) or square images as rows, of 1, 3 or 4 channels (more: "
    "igpt prepare --channels); "
    "levels 0 to 255 or of 16 bits, or floats from 0 to 1 or -1 to 1"
)

Order = Literal["grey", "last", "first", "rows"]


@dataclass(frozen=True, slots=True)
class Form:
    """How an array holds images, and how its numbers become levels."""

    order: Order
    height: int
    width: int
    channels: int
    scale: float
    offset: float
    """A level is number * scale + offset."""
    taken: tuple[int, ...] = ()
    """The channels, from 0, that become red, green and blue, or grey; empty: all."""

    def images(self, array: np.ndarray) -> np.ndarray:
        """Some of the images, in the array's own shape: (n, H, W, 3) uint8."""
        held = self._levels(array)
        n, H, W, C = len(held), self.height, self.width, self.channels
        if self.order == "first":
            held = np.moveaxis(held, 1, -1)
        held = held.reshape(n, H, W, C)
        if self.taken:
            held, C = held[..., list(self.taken)], len(self.taken)
        if C == 1:
            return np.broadcast_to(held, (n, H, W, 3))
        return held if C == 3 else _over_white(held)

    def _levels(self, array: np.ndarray) -> np.ndarray:
        if array.dtype == np.uint8:
            return array
        wide: np.ndarray = array.astype(np.float32)
        levels: np.ndarray = np.rint(self.scale * wide + self.offset).astype(np.uint8)
        return levels


def parsed_channels(text: str) -> tuple[int, ...]:
    """`"3,2,1"`: the channels, from 0, that become red, green and blue; a single one: grey.

    Raises:
        UserError: it is not of this form.
    """
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) in (1, 3) and all(map(str.isdecimal, numbers)):
        return tuple(map(int, numbers))
    raise UserError(
        f"--channels {text}: write the numbers, from 0, of those that become red, green and blue, "
        "such as 3,2,1, or of one that becomes grey"
    )


def form_of(
    shape: tuple[int, ...],
    dtype: np.dtype,
    low: float,
    high: float,
    *,
    taken: tuple[int, ...] = (),
) -> Form:
    """The form of N images.

    Args:
        shape: with N in front.
        dtype: of the numbers.
        low: the least of them.
        high: the greatest of them.
        taken: the channels, from 0, that become red, green and blue, or grey; empty: all.

    Raises:
        UserError: it is none that is known; the message says what was seen and what is accepted.
    """
    order, sizes = _order_of(shape) if not taken else _order_of_many(shape, max(taken) + 1)
    linear = _linear(dtype, low, high)
    if order is None or linear is None:
        # Of bytes nobody looked: all are levels.
        values = f" from {low:g} to {high:g}" if dtype.kind in "if" or dtype.itemsize > 1 else ""
        chosen = f" of which --channels takes {', '.join(map(str, taken))}" if taken else ""
        raise UserError(f"{shape} {dtype}{values}{chosen} are no images: give {ACCEPTED}")
    return Form(order, *sizes, *linear, taken)


def images_of(array: np.ndarray) -> np.ndarray:
    """N images in an array: (N, H, W, 3) uint8.

    Raises:
        UserError: it holds none, or in no form that is known.
    """
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3:
        return array
    return form_of(array.shape, array.dtype, *value_range(array)).images(array)


def image_of(array: np.ndarray) -> np.ndarray:
    """One image, (H, W), (H, W, C) or (C, H, W): (H, W, 3) uint8.

    Raises:
        UserError: it is none of these.
    """
    if array.ndim not in (2, 3) or not array.size:
        raise UserError(f"{array.shape} {array.dtype} is no image: give (H, W), (H, W, 3) or PIL's")
    image: np.ndarray = images_of(array[None])[0]
    return image


def value_range(array: np.ndarray) -> tuple[float, float]:
    """The least and the greatest number; NaN where one is; 0, 0 where there are none."""
    if array.dtype.kind not in "iuf" or not array.size:
        return 0.0, 0.0
    return float(array.min()), float(array.max())


def _order_of(shape: tuple[int, ...]) -> tuple[Order | None, tuple[int, int, int]]:
    """The order, and height, width and channels."""
    if any(n < 1 for n in shape[1:]):
        return None, (0, 0, 0)
    if len(shape) == 2:
        for channels in (3, 1):
            side = math.isqrt(shape[1] // channels)
            if channels * side**2 == shape[1]:
                return "rows", (side, side, channels)
    # (H, W, 3) is one image, not many that are 3 pixels wide.
    if len(shape) == 3 and (shape[2] not in (3, 4) or shape[1] == shape[2]):
        return "grey", (shape[1], shape[2], 1)
    if len(shape) == 4 and shape[3] in CHANNELS:
        return "last", (shape[1], shape[2], shape[3])
    if len(shape) == 4 and shape[1] in CHANNELS:
        return "first", (shape[2], shape[3], shape[1])
    return None, (0, 0, 0)


def _order_of_many(shape: tuple[int, ...], least: int) -> tuple[Order | None, tuple[int, int, int]]:
    """As `_order_of`, of any number of channels: the fewer of the first axis and the last."""
    if len(shape) != 4 or min(shape[1:]) < 1:
        return None, (0, 0, 0)
    order: Order = "first" if shape[1] < shape[3] else "last"
    height, width, channels = shape[1:] if order == "last" else (shape[2], shape[3], shape[1])
    return (order if channels >= least else None), (height, width, channels)


def _linear(dtype: np.dtype, low: float, high: float) -> tuple[float, float] | None:
    if dtype.kind == "b":
        return 255.0, 0.0
    if dtype.kind not in "iuf" or not (math.isfinite(low) and math.isfinite(high)):
        return None
    if dtype.kind == "f" and high <= 1 and low >= -1:
        return (255.0, 0.0) if low >= 0 else (127.5, 127.5)
    if low < 0 or high > 65535 or (dtype.kind == "f" and high > 255):
        return None
    return (1.0, 0.0) if high <= 255 else (1 / 257, 0.0)


def _over_white(held: np.ndarray) -> np.ndarray:
    """RGB and alpha: (n, H, W, 4) -> (n, H, W, 3) uint8."""
    wide = held.astype(np.uint32)
    colors, alpha = wide[..., :3], wide[..., 3:]
    return ((colors * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
