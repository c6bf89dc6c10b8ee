"""From a block of a source to rows of a packed set: what the worker processes do."""

import math
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from igpt.errors import UserError
from igpt.images.files import Decoded, decode, open_image
from igpt.images.resize import Crop, apply_maps, center_crop, crop_maps, crop_resize, random_crop
from igpt.images.sources.source import MAX_FILE_BYTES, Block, Span
from igpt.images.splits import TRAIN
from igpt.streams import stream

# A JPEG decoded at a reduced scale keeps this many pixels for each one of the result: measured,
# see `igpt bench data`; the mean error against full decoding stays below 1 level.
REDUCED_MARGIN = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What is made of every image."""

    image_size: int
    """Side S of the result, in pixels."""
    views: int = 0
    """Random crops of each training image, stored behind its centre crop."""
    upsample: bool = False
    """Enlarge images that are smaller than the result; else they are left out."""
    reduced: bool = True
    """Decode JPEGs at a reduced scale where it is enough."""
    seed: int = 0
    """Of the random crops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Rows made of a block."""

    images: np.ndarray
    """(k, S, S, 3) uint8."""
    labels: np.ndarray
    """(k,) int32, -1 for none."""
    codes: np.ndarray
    """(k,) uint8, split codes."""
    n_read: int
    """Images tried."""
    rejects: list[tuple[str, str]]
    """Name and reason of each that was left out."""


def start_worker() -> None:
    """Set up a worker process: one thread, deaf to Ctrl-C, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    parent = parent_process()
    assert parent is not None, "not a worker process"
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def pack_block(block: Block, packing: Packing) -> Packed:
    """Decode, crop and reduce a block of images; nothing that an image holds can stop it."""
    n = len(block.images)
    rows = 1 + (packing.views if block.code == TRAIN else 0)
    size = packing.image_size
    images = np.empty((n, rows, size, size, 3), np.uint8)
    kept = np.ones(n, bool)
    rejects = list(block.rejects)
    if rows == 1 and isinstance(block.images, np.ndarray):
        _pack_arrays(block.images, images[:, 0], kept, packing)
        rejects += [(block.keys[int(i)], _too_small(size)) for i in np.flatnonzero(~kept)]
    else:
        for i, item in enumerate(block.images):
            try:
                images[i] = _pack_one(item, rows, block.keys[i], packing)
            except UserError as error:
                kept[i] = False
                rejects.append((block.keys[i], str(error)))
    labels = np.full(n, -1, np.int32) if block.labels is None else np.array(block.labels, np.int32)
    return Packed(
        images=images[kept].reshape(-1, size, size, 3),
        labels=np.repeat(labels[kept], rows),
        codes=np.full(rows * int(kept.sum()), block.code, np.uint8),
        n_read=n + len(block.rejects),
        rejects=rejects,
    )


def _pack_arrays(
    images: np.ndarray, result: np.ndarray, kept: np.ndarray, packing: Packing
) -> None:
    H, W = images.shape[1:3]
    if min(H, W) < packing.image_size and not packing.upsample:
        kept[:] = False
        return
    rows, columns = crop_maps(center_crop(H, W), packing.image_size)
    result[:] = apply_maps(images, rows, columns)


def _pack_one(item: np.ndarray | Span | bytes, rows: int, key: str, packing: Packing) -> np.ndarray:
    """The centre crop and the random crops of an image: (rows, S, S, 3) uint8.

    Raises:
        UserError: why it is left out, without its name.
    """
    size = packing.image_size
    if isinstance(item, np.ndarray):
        image = Decoded(item, item.shape[0], item.shape[1], 1)
        crops = _crops(image.height, image.width, rows, key, packing)
    else:
        with open_image(read_span(item) if isinstance(item, Span) else item) as file:
            least = min(file.size)
            if least < size and not packing.upsample:
                raise UserError(_too_small(size))
            # Random crops magnify most at a shorter side of 384.
            shrink = 1.0 if rows == 1 else 384 / 224
            needed = math.ceil(REDUCED_MARGIN * size * shrink) if packing.reduced else 0
            image = decode(file, shorter_side=needed)
        crops = _crops(image.height, image.width, rows, key, packing)
    if min(image.height, image.width) < size and not packing.upsample:
        raise UserError(_too_small(size))
    return np.stack([crop_resize(image.pixels, crop, size, scale=image.scale) for crop in crops])


def _crops(height: int, width: int, rows: int, key: str, packing: Packing) -> list[Crop]:
    draws = [stream(packing.seed, f"prepare/{key}", slot=view) for view in range(rows - 1)]
    return [center_crop(height, width), *(random_crop(height, width, rng) for rng in draws)]


def _too_small(size: int) -> str:
    return f"smaller than {size} x {size}"


def read_span(span: Span) -> bytes:
    """The bytes of an encoded image.

    Raises:
        UserError: it cannot be read, is empty, or too large to be an image.
    """
    try:
        with span.path.open("rb") as file:
            file.seek(span.start)
            wanted = MAX_FILE_BYTES + 1 if span.size is None else span.size
            if wanted > MAX_FILE_BYTES and span.size is not None:
                raise UserError(f"more than {MAX_FILE_BYTES} bytes")
            data = file.read(wanted)
    except FileNotFoundError as error:
        raise UserError("there is no such file") from error
    except OSError as error:
        raise UserError("it may not be read") from error
    if not data:
        raise UserError("the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"more than {MAX_FILE_BYTES} bytes")
    if span.size is not None and len(data) < span.size:
        raise UserError("damaged or cut off")
    return data
