"""What every reader gives: blocks of images, encoded or as arrays, with labels and names."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from igpt.errors import UserError
from igpt.images.rejects import read_bytes
from igpt.images.sources.remote import present
from igpt.images.splits import TRAIN, VALID_FRACTION

# Images in a block: large enough that sending it costs nothing, small enough to lose when killed.
BLOCK_IMAGES = 64
# Bytes of encoded or plain pixels in a block.
BLOCK_BYTES = 2**24

T = TypeVar("T")


class Span(NamedTuple):  # sent between processes, which takes a dataclass several times as long
    """An encoded image: a file, or `size` bytes of one from `start`."""

    path: Path
    start: int = 0
    size: int | None = None


class Original(NamedTuple):
    """An encoded image that a row of a packed set was made of."""

    span: Span
    digest: int
    """`igpt.images.packed.originals.digest_of` its bytes."""


@lru_cache(64)  # the same object, which is then sent between processes once
def absolute(path: Path) -> Path:
    """The same file for a process that works in another folder."""
    return path if "://" in str(path) else path.absolute()


def read_span(span: Span) -> bytes:
    """The bytes of an encoded image.

    Raises:
        UserError: it cannot be read, is empty, or too large to be an image; the reason alone.
        UnreachableError: it is elsewhere, and nobody answers.
    """
    return read_bytes(present(span.path), span.start, span.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some images of one split, in the source's order."""

    images: np.ndarray | Sequence[Span | bytes]
    """(k, H, W, 3) uint8, or k encoded images."""
    keys: Sequence[str]
    """k names, for the table of rejects and the random views."""
    labels: Sequence[int] | np.ndarray | None = None
    """k classes, -1 for none; None: no labels at all."""
    code: int = TRAIN
    """Which split, as in `igpt.images.splits`."""
    originals: Sequence[Original | None] = ()
    """What k plain images were made of before; empty: not known."""
    rejects: Sequence[tuple[str, str]] = ()
    """Name and reason of what the reader itself left out."""


@dataclass(frozen=True, slots=True)
class Part:
    """The share of one among several processes or machines."""

    index: int = 1
    """From 1."""
    count: int = 1
    """How many there are."""

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`"3/16"` is the third of sixteen.

        Raises:
            UserError: it is not of this form.
        """
        index, _, count = text.partition("/")
        if index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count):
            return cls(int(index), int(count))
        raise UserError(f"--part {text} is not a part: write it as 3/16, from 1/16 to 16/16")

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every count-th item."""
        return islice(items, self.index - 1, None, self.count)


WHOLE = Part()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A collection of images that can be read from the start, always in the same order."""

    name: str
    """What it is, for people."""
    blocks: Callable[[Part], Iterator[Block]]
    """Reads a share of it."""
    classes: tuple[str, ...] | None = None
    """Class names; None: no labels; empty: labels are numbers, and their own names."""
    own_splits: frozenset[int] = field(default=frozenset({TRAIN}))
    """Codes of the splits that it brings itself."""
    n_images: int = 0
    """How many it has, about; 0: not known."""
    valid_fraction: float = VALID_FRACTION
    """Share of the training images that the paper sets aside for validation."""
    source_px: int = 0
    """Shorter side of the largest image that its own images were made of; 0: they are originals."""
    decided: tuple[str, ...] = ()
    """What was made of its files, labels and splits, a line each; printed and kept in the manifest
    when it is prepared."""


def without_labels(source: Source) -> Source:
    """A source whose images have no labels, whatever it brings."""

    def blocks(part: Part) -> Iterator[Block]:
        return (replace(block, labels=None) for block in source.blocks(part))

    said = tuple(line for line in source.decided if not line.startswith("labels:"))
    return replace(source, blocks=blocks, classes=None, decided=said)


def block_length(image_bytes: int) -> int:
    """Plain images of that many bytes that make a block."""
    return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // max(1, image_bytes)))


class BlockBuilder:
    """Gathers single images into blocks of one split.

    Args:
        labelled: whether the labels mean anything.
    """

    def __init__(self, *, labelled: bool) -> None:
        self._labelled = labelled
        self._code = TRAIN
        self._clear()

    def add(self, image: Span | bytes, key: str, label: int, code: int) -> Iterator[Block]:
        """Take an image; yields the block before it when that is complete."""
        n_bytes = len(image) if isinstance(image, bytes) else 0
        full = len(self._images) == BLOCK_IMAGES or self._n_bytes + n_bytes > BLOCK_BYTES
        if self._images and (full or code != self._code):
            yield self._block()
        self._code = code
        self._images.append(image)
        self._keys.append(key)
        self._labels.append(label)
        self._n_bytes += n_bytes

    def reject(self, key: str, reason: str) -> None:
        """Note an image that the reader leaves out."""
        self._rejects.append((key, reason))

    def rest(self) -> Iterator[Block]:
        """The last block, if anything is left."""
        if self._images or self._rejects:
            yield self._block()

    def _block(self) -> Block:
        block = Block(
            images=self._images,
            keys=self._keys,
            labels=self._labels if self._labelled else None,
            code=self._code,
            rejects=self._rejects,
        )
        self._clear()
        return block

    def _clear(self) -> None:
        self._images: list[Span | bytes] = []
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._rejects: list[tuple[str, str]] = []
        self._n_bytes = 0


def array_blocks(
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    code: int = TRAIN,
    name: str,
    first: int = 0,
) -> Iterator[Block]:
    """Blocks of an array of images.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int or None.
        code: which split.
        name: before each image's number, in its key.
        first: number of the first image.
    """
    step = block_length(images[:1].nbytes)
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        yield Block(
            images=np.ascontiguousarray(images[start:stop]),
            labels=None if labels is None else labels[start:stop],
            keys=[f"{name}/{first + i}" for i in range(start, stop)],
            code=code,
        )
