"""What turns images into tokens and back: one interface for `Palette` and `RawTokens`."""

from collections.abc import Iterator
from math import isqrt
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UserError

_CHUNK_BYTES = 3 << 20


class ImageArray(Protocol):
    """What is indexed like an array along its first axis, such as a split of a packed set."""

    def __len__(self) -> int:
        """Images N."""

    def __getitem__(self, ids: Any, /) -> Any:
        """Images (k, S, S, 3) uint8, or tokens (k, T), of a slice or an int array of k ids."""


@runtime_checkable
class CroppedImages(Protocol):
    """What gives another random crop of an image each time, such as `igpt.images.live`."""

    def __len__(self) -> int:
        """Images N."""

    def crops(
        self, ids: NDArray[np.int64], *, seed: int, name: str, step: int, slots: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Images (k, S, S, 3) uint8 for k ids in k slots of a step."""


class Tokenizer(Protocol):
    """Images to tokens in raster order, and back."""

    @property
    def kind(self) -> Literal["palette", "raw"]:
        """Which of the two it is, as `data.tokens` names it."""

    @property
    def n_colors(self) -> int:
        """Different tokens K."""

    @property
    def digest(self) -> str:
        """Hex sha256 that changes whenever the tokens of some image would."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Tokens (..., T) int64 of images (..., S, S, 3) uint8."""

    def encode_compact(self, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The same tokens as `encode` in their smallest unsigned type."""

    def decode(self, tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Images (..., S, S, 3) uint8 of tokens (..., T)."""


def check_images(images: NDArray[np.uint8]) -> None:
    """Refuse what is not (..., S, S, 3) uint8.

    Raises:
        UserError: another type or shape.
    """
    shape = images.shape
    if images.dtype != np.uint8:
        raise UserError(f"images are {images.dtype}, not uint8: give levels from 0 to 255")
    if len(shape) < 3 or shape[-1] != 3 or shape[-2] != shape[-3]:
        raise UserError(
            f"images have shape {shape}, not (..., S, S, 3): crop and resize them first"
        )


def image_chunks(images: ImageArray) -> Iterator[NDArray[np.uint8]]:
    """All images in order, about a million pixels at a time, so that memory stays bounded.

    Yields:
        (n, S, S, 3) uint8, contiguous.

    Raises:
        UserError: images of another type or shape.
    """
    first = np.asarray(images[0:1])
    check_images(first)
    at_once = max(1, _CHUNK_BYTES // max(1, first.nbytes))
    for start in range(0, len(images), at_once):
        chunk = np.ascontiguousarray(images[start : start + at_once])
        check_images(chunk)
        yield chunk


def image_side(tokens: NDArray[np.integer], *, n_colors: int, per_pixel: int) -> int:
    """The side S of the square images that tokens (..., T) stand for.

    Args:
        tokens: (..., T) integers.
        n_colors: different tokens K there are.
        per_pixel: tokens one pixel takes.

    Raises:
        UserError: T fits no square image, or a token lies outside 0 to K - 1.
    """
    if tokens.ndim < 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"tokens are {tokens.dtype} of shape {tokens.shape}: give integers (..., T)"
        )
    seq_len = tokens.shape[-1]
    side = isqrt(seq_len // per_pixel)
    if side * side * per_pixel != seq_len:
        raise UserError(f"{seq_len} tokens make no square image: give all tokens of each image")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= n_colors):
        raise UserError(
            f"tokens reach from {tokens.min()} to {tokens.max()}: "
            f"they must lie in 0 to {n_colors - 1}"
        )
    return side


class RawTokens:
    """The second tokeniser: likelihoods under it are true bits per dimension."""

    kind: Literal["raw"] = "raw"
    n_colors = 256
    digest = "raw"

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Tokens (..., 3 S S) int64, red green blue of each pixel in raster order.

        Args:
            images: (..., S, S, 3) uint8.

        Raises:
            UserError: images of another type or shape.
        """
        return self.encode_compact(images).astype(np.int64)

    def encode_compact(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same as uint8: the image's own bytes where they lie in order."""
        check_images(images)
        return images.reshape(*images.shape[:-3], 3 * images.shape[-2] ** 2)

    def decode(self, tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The images (..., S, S, 3) uint8 of tokens (..., 3 S S).

        Raises:
            UserError: tokens outside 0 to 255, or a number of them that fits no square image.
        """
        side = image_side(tokens, n_colors=self.n_colors, per_pixel=3)
        return tokens.astype(np.uint8).reshape(*tokens.shape[:-1], side, side, 3)
