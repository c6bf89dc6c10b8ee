"""What kind of image a file is, by its first bytes; and its pixels without what stands beside them.

Pillow's plugins are called one by one and not through `Image.open`, whose limit is on the number of
pixels and belongs to the whole process.
"""

import struct
from functools import cache
from typing import IO, Any, Protocol, cast

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
