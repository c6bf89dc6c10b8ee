"""One image file, hostile until checked, to (H, W, 3) uint8: any colour mode, EXIF, bounded."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from igpt.errors import UserError
from igpt.images.modes import as_rgb

# Pillow's other readers start programs (EPS), or read what nobody trains on.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
# Cameras reach 61 million; three bytes each make 200 MB.
MAX_PIXELS = 2**26

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
_JPEG_SCALES = (8, 4, 2)


def read_image(source: str | Path | bytes | Image.Image) -> np.ndarray:
    """An image as the eye sees it: orientation applied, alpha over white, any mode to RGB.

    Args:
        source: a path, the bytes of a file, or an open PIL image.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: missing, not an image, damaged, or of more than `MAX_PIXELS` pixels.
    """
    name = str(source) if isinstance(source, str | Path) else "the given image"
    try:
        if isinstance(source, Image.Image):
            return np.array(_decoded(source))
        file = Path(source) if isinstance(source, str) else source
        with unwarned(), open_image(file) as image:
            return np.array(_decoded(image))
    except UserError as error:
        raise UserError(f"cannot read {name}: {error}: check or replace the file") from error


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Pillow warns of large images and damaged metadata; the pixels decide."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def open_image(source: Path | bytes | IO[bytes]) -> Iterator[Image.Image]:
    """The image's header, its size checked, pixels not yet decoded.

    Raises:
        UserError: the reason alone, without the name; also for what goes wrong while it is open.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(image)
            yield image
    except (UserError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise UserError("there is no such file") from error
    except IsADirectoryError as error:
        raise UserError("this is a folder") from error
    except PermissionError as error:
        raise UserError("it may not be read") from error
    except UnidentifiedImageError as error:
        raise UserError("not an image, or of a kind that is not read") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        raise UserError("damaged or cut off") from error


def check_pixels(image: Image.Image) -> None:
    """Refuse an image that would not fit in memory.

    Raises:
        UserError: it has more than `MAX_PIXELS` pixels.
    """
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"more than {MAX_PIXELS} pixels")


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


def decode(image: Image.Image, *, shorter_side: int = 0) -> Decoded:
    """Decode an image, a JPEG at the smallest scale that leaves enough of it.

    Args:
        image: from `open_image`, not decoded yet.
        shorter_side: pixels that the shorter side must keep; 0 decodes in full.
    """
    width, height = image.size
    scale = 1
    if shorter_side and image.format in ("JPEG", "MPO"):
        least = min(image.size)
        scale = next((s for s in _JPEG_SCALES if least >= s * shorter_side), 1)
        if scale > 1:
            image.draft("RGB", (width // scale, height // scale))  # gives rounded-up sides
    pixels = np.asarray(_decoded(image))
    if _orientation(image) >= 5:
        height, width = width, height
    return Decoded(pixels, height, width, scale)


def _decoded(image: Image.Image) -> Image.Image:
    """The whole image decoded, in RGB, turned as its EXIF says."""
    image.load()
    turn = _orientation(image)
    rgb = as_rgb(image)
    return rgb.transpose(_TURNS[turn]) if turn in _TURNS else rgb


def _orientation(image: Image.Image) -> int:
    # Parsing EXIF costs as much as decoding a thumbnail, and most files have none.
    if image.format != "TIFF" and not _EXIF_KEYS & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata raises nearly anything; the pixels are still good
        return 1
