"""JPEGs by libjpeg-turbo's own interface: the pixels that Pillow gives, in a third of the time.

Opening a file with Pillow takes longer than decoding a thumbnail. So the size of a JPEG that has
nothing but its pixels to say (no orientation, no second picture, no profile of its colours' number)
is read here; Pillow has the last word on every other file, and on all that is damaged.
"""

import struct

import numpy as np

_START = b"\xff\xd8\xff"
# Frames that are decoded in one pass: baseline and extended. Pillow can interrupt progressive ones.
_FRAMES = (0xC0, 0xC1)
_SCAN = 0xDA
# Segments that change neither the colours nor which way is up: tables, intervals, comments, JFIF.
_HARMLESS = (0xC4, 0xDB, 0xDD, 0xFE, 0xE0)
_PROFILE = 0xE2
_PROFILE_START = b"ICC_PROFILE\0"  # what else begins so is a second picture


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that says nothing beside its pixels; None: look with Pillow."""
    if not data.startswith(_START):
        return None
    size, place = None, 2
    try:
        while True:
            mark, kind, length = struct.unpack_from(">BBH", data, place)
            if mark != 0xFF:
                return None
            if kind == _SCAN:
                return size
            if kind in _FRAMES and size is None:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
                if bits != 8 or channels not in (1, 3) or not height or not width:
                    return None
                size = height, width
            elif kind == _PROFILE:
                if not data.startswith(_PROFILE_START, place + 4):
                    return None
            elif kind not in _HARMLESS:
                return None
            place += 2 + length
    except struct.error:
        return None


def decode_jpeg(data: bytes, height: int, width: int, scale: int) -> np.ndarray | None:
    """The pixels of a JPEG in RGB at a fraction of its size.

    Args:
        data: all bytes of the file.
        height: of the full image.
        width: of the full image.
        scale: 1, 2, 4 or 8.

    Returns:
        (ceil(height / scale), ceil(width / scale), 3) uint8; None where libjpeg-turbo is not there,
        refuses the file or warns of it.
    """
    try:
        import simplejpeg

        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=False,
            fastupsample=False,
            min_height=height // scale,
            min_width=width // scale,
            strict=True,
        )
    except (ImportError, ValueError):
        return None
    return pixels if pixels.shape == (-(-height // scale), -(-width // scale), 3) else None
