"""Every colour mode of Pillow to RGB as the eye sees it.

Grey is repeated in three channels, 16 bits are scaled to 8, alpha is laid over white, CMYK and the
like become RGB; values without a fixed range (float, 32 bits) are refused.
"""

import numpy as np
from PIL import Image

from igpt.errors import UserError

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
