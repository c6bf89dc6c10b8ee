"""One image file, hostile until checked, to (H, W, 3) uint8: any colour mode, EXIF, bounded.

The limit is on the memory that decoding takes; an image above `FULL_PIXELS` is decoded at a whole
fraction of its size. What stands beside the pixels cannot make a sound image a bad one.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.images.recognise import (
    NOT_READ,
    as_rgb,
    bare,
    check_memory,
    decode_jpeg,
    plain_size,
    recognised,
)
from igpt.images.rejects import DAMAGED, read_bytes
from igpt.images.sources.names import shown

FULL_PIXELS = 2**26
"""Pixels of an image that is decoded in full; cameras of 2020 reached 61 million."""


_EXIF_ORIENTATION = 0x0112
_EXIF_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# libjpeg decodes straight to 1/2, 1/4 or 1/8 of the size.
_JPEG_SCALES = (1, 2, 4, 8)
# Modes that Pillow averages as they are; the others are made RGB first.
_AVERAGED = ("L", "RGB", "CMYK", "YCbCr")


def read_image(source: str | Path | bytes | Image.Image) -> np.ndarray:
    """An image as the eye sees it: orientation applied, alpha over white, any mode to RGB.

    Args:
        source: a path, the bytes of a file, or an open PIL image.

    Returns:
        (H, W, 3) uint8, RGB; at a fraction of its size where it has more than `FULL_PIXELS`.

    Raises:
        UserError: missing, not an image, damaged, or too large for memory.
    """
    name = shown(source) if isinstance(source, str | Path) else "the given image"
    try:
        if isinstance(source, Image.Image):
            return np.array(_upright(as_rgb(source), source))
        data = source if isinstance(source, bytes) else read_bytes(Path(source))
        return decode_bytes(data).pixels
    except UserError as error:
        raise UserError(f"cannot read {name}: {error}: check or replace the file") from error


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of an image, maybe at a fraction of its size."""

    pixels: np.ndarray
    """(ceil(height / scale), ceil(width / scale), 3) uint8."""
    height: int
    """Of the full image as the eye sees it."""
    width: int
    """Of the full image as the eye sees it."""
    scale: int
    """Full pixels along an axis that one of `pixels` stands for."""


class Header(Protocol):
    """What is known of an image before it is decoded; Pillow's images are such."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    info: dict[Any, Any]
    """What stands beside the pixels."""


@dataclass(slots=True)
class _PlainHeader:
    """Of an image that has nothing beside its pixels."""

    height: int
    width: int
    info: dict[Any, Any]


Check = Callable[[Header], None]


def decode_bytes(data: bytes, *, shorter_side: int = 0, check: Check | None = None) -> Decoded:
    """Decode the bytes of an image file.

    Args:
        data: all of them.
        shorter_side: pixels that the shorter side must keep, where a JPEG is decoded at a fraction
            of its size; 0: decode in full, up to `FULL_PIXELS`.
        check: called with the header before it is decoded, to refuse the image by `UserError`.

    Raises:
        UserError: the reason alone, without the name.
    """
    if (plain := _decode_plain(data, shorter_side, check)) is not None:
        return plain
    try:
        return _decode_once(data, shorter_side, check)
    except UserError as error:
        # What stands beside the pixels may be at fault: look at the pixels alone.
        if str(error) not in (DAMAGED, NOT_READ) or (alone := bare(data)) is None:
            raise
        return _decode_once(alone, shorter_side, check)


def _decode_plain(data: bytes, shorter_side: int, check: Check | None) -> Decoded | None:
    """A JPEG that says nothing beside its pixels, decoded without Pillow; None: not such a one."""
    if (size := plain_size(data)) is None:
        return None
    height, width = size
    if check is not None:
        check(_PlainHeader(height, width, {}))
    scale = _scale(height, width, shorter_side)
    if -(-height // scale) * -(-width // scale) > FULL_PIXELS:
        return None
    pixels = decode_jpeg(data, height, width, scale)
    return None if pixels is None else Decoded(pixels, height, width, scale)


def _decode_once(data: bytes, shorter_side: int, check: Check | None) -> Decoded:
    with open_image(data) as image:
        if check is not None:
            check(image)
        return decode(image, shorter_side=shorter_side)


@contextlib.contextmanager
def open_image(source: bytes | IO[bytes]) -> Iterator[Image.Image]:
    """The image's header, pixels not yet decoded.

    Raises:
        UserError: the reason alone, without the name; also for what goes wrong while it is open.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with recognised(file) as image:
            yield image
    except (UserError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise UserError("there is not enough memory to decode it") from error
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        raise UserError(DAMAGED) from error


def decode(image: Image.Image, *, shorter_side: int = 0) -> Decoded:
    """Decode an image at the smallest scale that leaves enough of it.

    Args:
        image: from `open_image`, not decoded yet.
        shorter_side: pixels that the shorter side of a JPEG must keep; 0: as many as fit.

    Raises:
        UserError: it would take more than `MAX_MEMORY_BYTES`.
    """
    width, height = image.size
    scale = _draft(image, shorter_side)
    check_memory(image, width, height, scale)
    fast = _fast(image, width, height, scale)
    if fast is not None:
        turn = _orientation(image)
        pixels = fast if turn == 1 else np.asarray(Image.fromarray(fast).transpose(_TURNS[turn]))
        return Decoded(pixels, *((width, height) if turn >= 5 else (height, width)), scale)
    image.load()
    more = math.ceil(math.sqrt(image.width * image.height / FULL_PIXELS))
    held = image
    if more > 1:
        held = (image if image.mode in _AVERAGED else as_rgb(image)).reduce(more)
    pixels = np.asarray(_upright(as_rgb(held), image))
    if _orientation(image) >= 5:
        height, width = width, height
    return Decoded(pixels, height, width, scale * more)


def _fast(image: Image.Image, width: int, height: int, scale: int) -> np.ndarray | None:
    """A JPEG's pixels by libjpeg-turbo's own interface.

    None where Pillow has to decode: other files, progressive ones (which it can interrupt), and
    whatever libjpeg-turbo warns of.
    """
    file = getattr(image, "fp", None)
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or not isinstance(file, io.BytesIO):
        return None
    if image.info.get("progressive") or -(-height // scale) * -(-width // scale) > FULL_PIXELS:
        return None
    return decode_jpeg(file.getvalue(), height, width, scale)


def _draft(image: Image.Image, shorter_side: int) -> int:
    """Have a JPEG decoded at a fraction of its size; which one it is."""
    if image.format not in ("JPEG", "MPO"):
        return 1
    width, height = image.size
    wanted = _scale(height, width, shorter_side)
    if wanted > 1:
        image.draft("RGB", (width // wanted, height // wanted))
    sizes = {(-(-width // s), -(-height // s)): s for s in reversed(_JPEG_SCALES)}
    return sizes[image.size]


def _scale(height: int, width: int, shorter_side: int) -> int:
    """The largest fraction at which enough of a JPEG is left, or the first that fits in memory."""
    enough = [s for s in _JPEG_SCALES if shorter_side and min(width, height) >= s * shorter_side]
    fits = [s for s in _JPEG_SCALES if width * height <= FULL_PIXELS * s**2]
    return max(max(enough, default=1), min(fits, default=_JPEG_SCALES[-1]))


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    turn = _orientation(image)
    return rgb if turn == 1 else rgb.transpose(_TURNS[turn])


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF numbers them; 1, upright, for any other number or none."""
    # Parsing EXIF costs as much as decoding a thumbnail, and most files have none.
    if image.format != "TIFF" and not _EXIF_KEYS & image.info.keys():
        return 1
    try:
        turn = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata raises nearly anything; the pixels are still good
        return 1
    return turn if turn in _TURNS else 1
