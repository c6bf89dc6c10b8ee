"""Images of any kind that a caller may hand over, as one array at a model's size.

A path, the bytes of a file, an open file, a PIL image, an array or a tensor: one, or many in a
list, an array or a column of a table. `igpt.images.levels` says what arrays may hold. A file gives
the same pixels here as when it is prepared.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.images.crop import center_crop, crop_resize, enough_px
from igpt.images.decode import Check, Decoded, decode_bytes, read_image
from igpt.images.levels import image_of, images_of
from igpt.images.rejects import read_bytes
from igpt.images.sources.names import shown
from igpt.progress import say
from igpt.system import at_home

# Images of more than so many times the model's side lose nearly all detail.
FAR = 8
# Models, by their sizes, that it was said of.
_said: set[tuple[int, int]] = set()

Images = Any
"""What `as_squares` takes."""


def as_squares(images: Images, side: int, *, source_px: int = 0) -> np.ndarray:
    """Any images cut to their centre square and resized: (N, S, S, 3) uint8.

    Args:
        images: one, or many.
        side: S, the model's.
        source_px: shorter side of the largest image that the model was trained on; 0: not known.

    Raises:
        UserError: there are none, or one cannot be read or has another shape or type.
    """
    squares, shorter_px = [], []
    for image in each_image(images):  # one after another: few large ones are held at a time
        made, px = read_square(image, side)
        squares.append(made)
        shorter_px.append(px)
    if not squares:
        raise UserError("there are no images: pass at least one")
    warn_of_sizes(shorter_px, side, source_px=source_px)
    return np.stack(squares)


def each_image(images: Images) -> Iterable[Any]:
    """What was handed over, image by image.

    Raises:
        UserError: an array holds no images, or it cannot be told which.
    """
    if (array := _as_array(images)) is not None:
        return _each_of(array, is_tensor=array is not images)
    if _is_single(images):
        return [images]
    if isinstance(images, dict | set) or not isinstance(images, Iterable):
        raise _refused(images)
    return images


def _each_of(array: np.ndarray, *, is_tensor: bool) -> Iterable[Any]:
    if array.dtype == object or array.dtype.kind in "UT":  # paths, or images
        if array.ndim == 2 and array.shape[1] != 1:
            raise UserError(f"a table of {array.shape[1]} columns: give the one of images")
        return list(array.reshape(-1).tolist())
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if last or (first and is_tensor):
            return [array]
        if first and array.shape[0] != 1:
            raise UserError(
                f"an array of {array.shape} may be {array.shape[0]} grey images or one of "
                f"{array.shape[0]} channels: give (N, H, W, 1), (N, C, H, W) or (H, W, C)"
            )
    return [array] if array.ndim < 3 else images_of(array)


def read_square(image: Any, side: int, *, check: Check | None = None) -> tuple[np.ndarray, int]:
    """One image at the model's size, as `igpt prepare` makes it, and its shorter side in pixels.

    Args:
        image: a path, bytes, an open file, a PIL image, an array or a tensor.
        side: S in pixels.
        check: may refuse an encoded image by its header.

    Returns:
        (S, S, 3) uint8, and the pixels of the shorter side as it came.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if (data := _encoded(image)) is not None:
        try:
            held = decode_bytes(_read(data), shorter_side=enough_px(side), check=check)
        except UserError as error:
            raise cannot_read(image, error) from error
    else:
        array = pixels_of(image)
        held = Decoded(array, array.shape[0], array.shape[1], 1)
    crop = center_crop(held.height, held.width)
    made = held.pixels
    if made.shape[:2] != (side, side) or held.scale != 1:
        made = crop_resize(made, crop, side, scale=held.scale)
    return made, min(held.height, held.width)


def pixels_of(image: Any) -> np.ndarray:
    """One image of any kind in full: (H, W, 3) uint8.

    Raises:
        UserError: it is none that is taken, or cannot be read.
    """
    if (data := _encoded(image)) is not None:
        return read_image(image if isinstance(image, str | Path) else _read(data))
    if isinstance(image, Image.Image):
        return read_image(image)
    if (array := _as_array(image)) is not None:
        return image_of(array)
    raise _refused(image)


def square(array: np.ndarray, side: int) -> np.ndarray:
    """An image at the model's size: (H, W, 3) -> (S, S, 3) uint8."""
    return read_square(array, side)[0]


def _encoded(image: Any) -> Any:
    """The bytes of an encoded image, or a function that reads them; None: it is not encoded."""
    if isinstance(image, np.str_ | str | os.PathLike):
        return lambda: read_bytes(at_home(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        return lambda: _read_open(image)
    return None


def _read(data: Any) -> bytes:
    found = data() if callable(data) else data
    assert isinstance(found, bytes)
    return found


def _read_open(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise UserError("it is open as text: open it with mode 'rb'")
    return data


def _as_array(images: Any) -> np.ndarray | None:
    """An array, or a tensor or column of a table as one; None: it is neither."""
    if isinstance(images, np.ndarray):
        return images
    if hasattr(images, "detach") and hasattr(images, "numpy"):  # a tensor
        tensor = images.detach().cpu()
        return np.asarray(tensor.float() if "bfloat16" in str(tensor.dtype) else tensor)
    if hasattr(images, "to_numpy"):  # a column of a table, or a table
        return np.asarray(images.to_numpy())
    return None


def _is_single(image: Any) -> bool:
    return isinstance(image, Image.Image) or _encoded(image) is not None


def cannot_read(image: Any, reason: object) -> UserError:
    """The line for one image that cannot be read."""
    name = shown(os.fspath(image)) if isinstance(image, str | os.PathLike) else "the given image"
    return UserError(f"cannot read {name}: {reason}: check or replace the file")


def warn_of_sizes(shorter_px: Sequence[int], side: int, *, source_px: int) -> None:
    """Say, once, where images are so unlike those of training that little is left of them.

    A model that learned from photographs has seen them as small as it sees these, so that large
    images are far only from a model whose own training images were small.

    Args:
        shorter_px: of the images.
        side: S, the model's.
        source_px: shorter side of the largest image that it was trained on; 0: not known.
    """
    far = [px for px in shorter_px if px < side or (source_px and px > FAR * source_px)]
    key = (side, source_px)
    if not far or key in _said:
        return
    _said.add(key)
    seen = f"at most {source_px} pixels" if source_px else f"at least {side} pixels"
    sizes = f"{min(far)} to {max(far)}" if min(far) < max(far) else f"{min(far)}"
    say(
        f"warning: of {len(shorter_px)} images {len(far)} differ much in size from those that this "
        f"model was trained on ({sizes} pixels on the shorter side; there {seen}): detail is lost "
        "or made up, and features and likelihoods mean less"
    )


def _refused(image: Any) -> UserError:
    kind = type(image)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return UserError(
        f"{name} is no image: pass paths, bytes, open files, PIL images, arrays or tensors"
    )
