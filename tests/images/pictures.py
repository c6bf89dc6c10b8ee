"""Small image files, archives and sets that several tests share."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Like a photograph: (height, width, 3) uint8, without sharp detail."""
    small = Image.fromarray(noise(4, 5, seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    held = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    held.save(file, kind, **options)
    return file.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Files by relative path; a name that ends in / is an empty folder."""
    for name, data in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tar_bytes(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files, in order; names are written as they are."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=kind) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return held.getvalue()


def class_files(n_each: int = 3, side: int = 16, classes: str = "ab") -> dict[str, bytes]:
    """Images in one folder a class; image i of class c is all of one colour."""
    return {
        f"{name}/{i}.png": encoded(np.full((side, side, 3), (40 * c + i) % 256, np.uint8))
        for c, name in enumerate(classes)
        for i in range(n_each)
    }


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
