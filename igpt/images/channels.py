"""Every colour mode of Pillow to RGB as the eye sees it, and the memory that each takes.

Grey is repeated in three channels, 16 bits are scaled to 8, alpha is laid over white, CMYK and the
like become RGB; values without a fixed range (float, 32 bits) are refused.
"""

import os

import numpy as np
from PIL import Image

from igpt.errors import UserError

MAX_MEMORY_BYTES = 2**30
"""Memory that decoding one image may take: 268 million pixels of RGB."""

# Pillow keeps four bytes for each pixel of more than one channel; conversion to RGB makes copies.
_BYTES_PER_PIXEL = {"1": 5, "L": 5, "P": 5, "RGB": 4, "I;16": 8, "I;16B": 8, "I": 16}
_OTHER_BYTES_PER_PIXEL = 16
# Deflate gives at most 1,032 bytes for one.
_DEFLATE_MOST = 1100
_TO_8_BITS = ((np.arange(2**16, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded image in RGB.

    Raises:
        UserError: its values have no fixed range; the message is the reason alone.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise UserError("float pixels have no fixed range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """0..65535 scaled to 0..255, not cut: Pillow's own conversion clips at 255."""
    wide = np.asarray(image)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise UserError("32-bit pixels have no fixed range")
    return Image.fromarray(_TO_8_BITS[wide.astype(np.uint16, copy=False)])


def check_memory(image: Image.Image, width: int, height: int, scale: int) -> None:
    """Refuse an image that takes too much memory, or claims more than its file can hold.

    Args:
        image: not decoded yet, and already set to be decoded at a fraction of its size.
        width: of the full image, in pixels.
        height: of the full image, in pixels.
        scale: the fraction's denominator.

    Raises:
        UserError: it is too large; the message is the reason alone.
    """
    per_pixel = _BYTES_PER_PIXEL.get(image.mode, _OTHER_BYTES_PER_PIXEL)
    needed = image.width * image.height * per_pixel
    if scale > 1 and image.info.get("progressive"):  # libjpeg holds all coefficients
        needed += 6 * width * height
    if needed > MAX_MEMORY_BYTES:
        raise UserError(
            f"{width} x {height} pixels take {needed / 2**30:.1f} GiB to decode, "
            f"more than {MAX_MEMORY_BYTES / 2**30:g}"
        )
    if image.format == "PNG" and (file := getattr(image, "fp", None)) is not None:
        here = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(here)
        if width * height > 8 * _DEFLATE_MOST * size:  # one bit a pixel at least
            raise UserError(f"{width} x {height} pixels cannot be in {size} bytes")
