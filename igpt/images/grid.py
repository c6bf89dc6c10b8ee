"""Many images as one picture, and pictures as PNG bytes."""

import io
import math

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

GAP_PX = 2
BACKGROUND = (255, 255, 255)
# About as wide as one image should be shown, whatever it was drawn at.
SEEN_PX = 96
OWN_MARK = ("Software", "igpt")
"""Stands in the pictures that igpt draws, so that they are not taken for data later."""
_EXIF = Image.Exif()
_EXIF[305] = OWN_MARK[1]  # 305: Software
OWN_MARKS = {"GIF": {"comment": OWN_MARK[1].encode()}, "WEBP": {"exif": _EXIF.tobytes()}}
"""What says the same in animations, by format: what Pillow writes, and reads back."""


def enlargement(side: int) -> int:
    """How many pixels a side each of an image of S pixels becomes, for it to be seen well."""
    return max(1, round(SEEN_PX / side))


def tile(
    images: np.ndarray,
    columns: int = 0,
    *,
    enlarge: int = 1,
    gap_px: int = GAP_PX,
    background: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """Images side by side, row after row, with a gap between them and around the whole.

    Args:
        images: (N, S, S, 3) uint8.
        columns: images a row; 0: about as many as rows.
        enlarge: every pixel becomes this many a side; nothing is smoothed.
        gap_px: width of the gap, in pixels of the picture.
        background: RGB, 0..255, of the gap and of places without an image.

    Returns:
        (H, W, 3) uint8.
    """
    N, height, width, _ = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(N)))
    rows = max(1, math.ceil(N / columns))
    tall, wide = height * enlarge + gap_px, width * enlarge + gap_px
    picture = np.empty((rows * tall + gap_px, columns * wide + gap_px, 3), np.uint8)
    picture[:] = background
    for i, image in enumerate(images):
        top, left = gap_px + i // columns * tall, gap_px + i % columns * wide
        large = image.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        picture[top : top + len(large), left : left + large.shape[1]] = large
    return picture


def to_png_bytes(picture: np.ndarray) -> bytes:
    """A (H, W, 3) uint8 picture as the bytes of a PNG file, marked as drawn by igpt."""
    file, mark = io.BytesIO(), PngInfo()
    mark.add_text(*OWN_MARK)
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG", optimize=True, pnginfo=mark)
    return file.getvalue()
