"""From a block of a source to the rows that a packed set stores: what worker processes do."""

import hashlib
import io
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.images.crop import (
    Crop,
    center_crop,
    crop_maps,
    crop_resize,
    enough_px,
    random_crop,
)
from igpt.images.decode import Decoded, Header, decode_bytes
from igpt.images.packed.originals import digest_of
from igpt.images.recognise import check_not_own
from igpt.images.resize import apply_maps
from igpt.images.sources.remote import UnreachableError
from igpt.images.sources.source import Block, Original, Span, absolute, read_span
from igpt.images.splits import TRAIN
from igpt.images.workers import alarm, limited
from igpt.streams import stream

# Decoding the largest photographs takes a second.
MAX_DECODE_S = 10
# Bytes of decoded images that are reduced together.
_RUN_BYTES = 2**22
MAX_KEPT_SIDE = 1024
# At this quality and a side of 256, cropping the copy for 32 pixels differs from cropping the
# original by less than rounding the crop's corners does.
KEPT_QUALITY = 92


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
    keep_side: int = 0
    """Shorter side of the copies that are kept to be cropped anew; 0: the originals serve."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 256:
            raise UserError(f"image size {self.image_size} is not possible: choose 1 to 256 pixels")
        if self.views < 0:
            raise UserError(f"--views {self.views} is not possible: choose 0 or more random crops")
        if self.keep_side and not self.image_size <= self.keep_side <= MAX_KEPT_SIDE:
            raise UserError(
                f"--keep-side {self.keep_side} is not possible: choose from --image-size to "
                f"{MAX_KEPT_SIDE} pixels, or 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Rows made of a block."""

    images: np.ndarray
    """(k, S, S, 3) uint8."""
    labels: np.ndarray
    """(k,) int32, -1 for none."""
    codes: np.ndarray
    """(k,) uint8, split codes."""
    originals: list[Original | bytes | None]
    """k files that the rows were made of, or copies to keep; None: it was no file."""
    n_read: int
    """Images tried."""
    rejects: list[tuple[str, str]]
    """Name and reason of each that was left out."""
    source_px: int = 0
    """Shorter side of the largest image."""
    holds: str = ""
    """`fingerprint` of the block."""


def fingerprint(block: Block) -> str:
    """Hex of what a block is made of: its names, labels and split, and lengths where known."""
    state = hashlib.blake2b(str(block.code).encode(), digest_size=16)
    if block.labels is not None:
        state.update(np.asarray(block.labels, np.int64).tobytes())
    for i, key in enumerate(chain(block.keys, map(itemgetter(0), block.rejects))):
        image = block.images[i] if i < len(block.images) else b""
        size = image.size if isinstance(image, Span | np.ndarray) else len(image)
        state.update(f"{key}\0{size}\0".encode(errors="surrogateescape"))
    return state.hexdigest()


def pack_block(block: Block, packing: Packing) -> Packed:
    """Decode, crop and reduce a block of images; nothing that an image holds can stop it."""
    rows = 1 + (packing.views if block.code == TRAIN else 0)
    side = packing.image_size
    if isinstance(block.images, np.ndarray) and rows == 1 and not packing.keep_side:
        return _pack_array(block, block.images, packing)
    images = np.empty((len(block.images), rows, side, side, 3), np.uint8)
    kept = np.ones(len(images), bool)
    rejects = list(block.rejects)
    run, source_px = _Run(images), 0
    originals: list[Original | bytes | None] = []
    with alarm():
        for i, item in enumerate(block.images):
            try:
                with limited(MAX_DECODE_S):
                    data = read_span(item) if isinstance(item, Span) else item
                    image = _decoded(data, packing, is_cropped=rows > 1)
                    original = _original(item, data, image, packing)
                run.add(i, image, packing, block.keys[i])
                originals += [original] * rows
                source_px = max(source_px, min(image.height, image.width))
            except UnreachableError:
                raise  # the image may be sound
            except UserError as error:
                kept[i] = False
                rejects.append((block.keys[i], str(error)))
    run.flush()
    labels = np.full(len(images), -1) if block.labels is None else np.asarray(block.labels)
    return Packed(
        images=images[kept].reshape(-1, side, side, 3),
        labels=np.repeat(labels[kept].astype(np.int32), rows),
        codes=np.full(rows * int(kept.sum()), block.code, np.uint8),
        originals=originals,
        n_read=len(images) + len(block.rejects),
        rejects=rejects,
        source_px=source_px,
        holds=fingerprint(block),
    )


def _original(
    item: np.ndarray | Span | bytes, data: np.ndarray | bytes, image: Decoded, packing: Packing
) -> Original | bytes | None:
    """What a row can be cropped anew from."""
    if packing.keep_side:
        return _copy(image, packing.keep_side)
    if isinstance(item, Span) and isinstance(data, bytes):
        return Original(Span(absolute(item.path), item.start, item.size), digest_of(data))
    return None


def _copy(image: Decoded, shorter: int) -> bytes:
    """A JPEG of the whole image, reduced to a shorter side; a smaller one keeps its size."""
    height, width = image.pixels.shape[:2]
    whole = Image.fromarray(np.ascontiguousarray(image.pixels))
    if (share := shorter / min(height, width)) < 1:
        size = round(width * share), round(height * share)
        whole = whole.resize(size, Image.Resampling.BOX)
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=KEPT_QUALITY)
    return file.getvalue()


def _pack_array(block: Block, images: np.ndarray, packing: Packing) -> Packed:
    """`pack_block` of plain images, which are all of one size: reduced together."""
    n, height, width = images.shape[:3]
    rejects = list(block.rejects)
    originals: list[Original | bytes | None] = list(block.originals) or [None] * n
    try:
        _check_size(height, width, packing)
    except UserError as error:
        rejects += [(key, str(error)) for key in block.keys]
        images = images[:0]
    if height != packing.image_size or width != height:
        images = apply_maps(images, *crop_maps(center_crop(height, width), packing.image_size))
    labels = np.full(n, -1) if block.labels is None else np.asarray(block.labels)
    return Packed(
        images=images,
        labels=labels[: len(images)].astype(np.int32),
        codes=np.full(len(images), block.code, np.uint8),
        originals=originals[: len(images)],
        n_read=n + len(block.rejects),
        rejects=rejects,
        source_px=min(height, width),
        holds=fingerprint(block),
    )


class _Run:
    """Decoded images of one size in a row, reduced together: a call costs as much as a thumbnail.

    Args:
        result: (n, rows, S, S, 3) uint8, filled by `add` and `flush`; row 0 is the centre crop,
            the others are random crops.
    """

    def __init__(self, result: np.ndarray) -> None:
        self._result = result
        self._first = 0
        self._held: list[np.ndarray] = []
        self._centre: tuple[Crop, int] | None = None

    def add(self, i: int, image: Decoded, packing: Packing, key: str) -> None:
        """Image i; those between the last and it were left out."""
        size = packing.image_size
        for view in range(1, self._result.shape[1]):
            rng = stream(packing.seed, f"prepare/{key}", slot=view)
            crop = random_crop(image.height, image.width, rng)
            self._result[i, view] = crop_resize(image.pixels, crop, size, scale=image.scale)
        centre = (center_crop(image.height, image.width), image.scale)
        n_held = len(self._held)
        follows = centre == self._centre and i == self._first + n_held
        if not follows or (n_held + 1) * image.pixels.nbytes > _RUN_BYTES:
            self.flush()
            self._first, self._centre = i, centre
        self._held.append(image.pixels)

    def flush(self) -> None:
        """Reduce what is held."""
        if self._centre is not None:
            crop, scale = self._centre
            maps = crop_maps(crop, self._result.shape[2], scale=scale)
            stop = self._first + len(self._held)
            self._result[self._first : stop, 0] = apply_maps(np.stack(self._held), *maps)
        self._held, self._centre = [], None


def _decoded(item: np.ndarray | bytes, packing: Packing, *, is_cropped: bool) -> Decoded:
    """Pixels of one image, enough of them for every crop.

    Raises:
        UserError: why it is left out, without its name.
    """
    if isinstance(item, np.ndarray):
        _check_size(item.shape[0], item.shape[1], packing)
        return Decoded(item, item.shape[0], item.shape[1], 1)

    def check(image: Header) -> None:
        check_not_own(image)
        _check_size(image.height, image.width, packing)

    needed = max(enough_px(packing.image_size, is_cropped=is_cropped), packing.keep_side)
    return decode_bytes(item, shorter_side=needed if packing.reduced else 0, check=check)


def _check_size(height: int, width: int, packing: Packing) -> None:
    size = packing.image_size
    if min(height, width) < size and not packing.upsample:
        raise UserError(f"smaller than {size} x {size}")
