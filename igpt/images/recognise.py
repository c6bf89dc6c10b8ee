"""What lies between an image's file and its RGB: its kind, what is read of it, its colours.

The kind is told by the first bytes. Pillow's plugins are called one by one and not through
`Image.open`, whose limit is on the number of pixels and belongs to the whole process.

Opening a file with Pillow takes longer than decoding a thumbnail. So the size of a JPEG that has
nothing but its pixels to say (no orientation, no second picture, no profile of its colours' number)
is read here, and libjpeg-turbo's own interface gives the pixels that Pillow gives, in a third of
the time; Pillow has the last word on every other file, and on all that is damaged.

Of Pillow's colour modes, grey is repeated in three channels, 16 bits are scaled to 8, alpha is laid
over white, CMYK and the like become RGB; values without a fixed range (float, 32 bits) are refused.
"""

import os
import struct
from functools import cache
from typing import IO, Any, Protocol, cast

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.images.grid import OWN_MARK, OWN_MARKS
from igpt.images.rejects import DAMAGED, OWN_PICTURE, check_pointer
from igpt.images.sources.names import HEIF_REMEDY, has_heif

# Pillow's other readers start programs (EPS), or read what nobody trains on.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
NOT_READ = "not an image, or of a kind that is not read"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
# What a file that is no image often is instead.
_LIKE = (
    (b"<!doctype html", "HTML, such as the error page of a download"),
    (b"<html", "HTML, such as the error page of a download"),
    (b"<svg", "SVG, which is not read"),
    (b"<?xml", "XML, which is not read"),
    (b"%pdf", "PDF, which is not read"),
    (b"pk\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
)


def recognised(file: IO[bytes]) -> Image.Image:
    """The image in a file by the plugin that takes it; as `Image.open`, without its pixel limit."""
    file.seek(0)
    start = file.read(256)
    check_pointer(start)
    for factory, accepts in _plugins():
        try:
            taken = True if accepts is None else accepts(start[:64])
            if taken and not isinstance(taken, str):  # text says why not
                file.seek(0)
                return cast(Image.Image, factory(file, ""))
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # by Pillow's convention: not of this kind
    raise UserError(_what_else(start))


@cache
def _plugins() -> list[tuple[Any, Any]]:
    Image.init()
    found: list[tuple[Any, Any]] = [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]
    if has_heif():  # not registered with Pillow, which belongs to the whole process
        from pillow_heif import HeifImageFile

        found.insert(0, (HeifImageFile, _is_heif))
    return found


def _is_heif(start: bytes) -> bool:
    """Whether a file begins as HEIC does; AVIF, which Pillow reads, begins much like it."""
    brands = start[8:12], start[16:20], start[20:24], start[24:28]
    return start[4:8] == b"ftyp" and any(
        brand[:3] == b"hei" or brand[:3] == b"hev" for brand in brands
    )


def _what_else(start: bytes) -> str:
    if _is_heif(start):
        return DAMAGED if has_heif() else f"HEIC is not read: {HEIF_REMEDY}"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    like = next((name for first, name in _LIKE if text.startswith(first)), "")
    if like:
        return f"not an image but {like}"
    return "only zeros" if start and not any(start) else NOT_READ


class _Described(Protocol):
    info: dict[Any, Any]


def check_not_own(image: _Described) -> None:
    """Refuse by `UserError` a picture that igpt drew, where it is found among images."""
    marks = [OWN_MARK, *(mark for own in OWN_MARKS.values() for mark in own.items())]
    if any(image.info.get(name) == value for name, value in marks):
        raise UserError(OWN_PICTURE)


def bare(data: bytes) -> bytes | None:
    """A PNG or JPEG without what stands beside its pixels; None: neither, or nothing to leave out.

    An orientation in EXIF goes with the rest in a JPEG: what holds it may be what is damaged.
    """
    try:
        if data.startswith(_PNG):
            found = _bare_png(data)
        elif data.startswith(b"\xff\xd8"):
            found = _bare_jpeg(data)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return found if len(found) < len(data) else None


def _bare_png(data: bytes) -> bytes:
    parts, place = [_PNG], len(_PNG)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        stop = place + 12 + length
        if data[place + 4 : place + 8] in _PNG_KEPT:
            parts.append(data[place:stop])
        place = stop
    return b"".join(parts)


def _bare_jpeg(data: bytes) -> bytes:
    parts, place = [data[:2]], 2
    while data[place] == 0xFF and data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        stop = place + 2 + length
        kind = data[place + 1]
        # Segments 1 to 15 of applications, without Adobe's, which says how colours are stored.
        if not (0xE1 <= kind <= 0xEF and kind != 0xEE) and kind != 0xFE:
            parts.append(data[place:stop])
        place = stop
    parts.append(data[place:])
    return b"".join(parts)


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
