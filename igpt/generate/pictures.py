"""What generation yields, to look at: sheets of completions, pictures in the making, heat maps."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from igpt.errors import UserError
from igpt.files import write_bytes, writing
from igpt.generate.sample import Progress
from igpt.images.grid import OWN_MARKS, tile

# Pixels that are not there yet, or were hidden from the model: two greys, as a checkerboard.
GREYS = (168, 200)
FRAMES = 64
FRAME_MS = 60
LAST_FRAME_MS = 2500
CELL_PX = 192
TITLE_PX = 22
GAP_PX = 4

Decode = Callable[[np.ndarray], np.ndarray]


def hide(images: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Images with a grey checkerboard where nothing is to be seen.

    Args:
        images: (..., S, S, 3) uint8.
        visible: (..., S, S) bool.

    Returns:
        (..., S, S, 3) uint8.
    """
    side = images.shape[-2]
    board = np.add.outer(np.arange(side), np.arange(side)) % 2  # (S, S)
    grey = np.array(GREYS, np.uint8)[board][..., None]  # (S, S, 1)
    return np.where(visible[..., None], images, grey)


def look(progress: Progress, decode: Decode) -> np.ndarray:
    """Images as far as they are drawn.

    Args:
        progress: from `sampling` or `completing`.
        decode: (n, T) int64 to (n, S, S, 3) uint8, a tokeniser's.

    Returns:
        (n, S, S, 3) uint8.
    """
    images = decode(progress.tokens)
    n, side = images.shape[:2]
    by_pixel = progress.drawn.reshape(n, side, side, -1)  # raw tokens: three a pixel
    return hide(images, np.asarray(by_pixel.all(-1)))


def some(steps: Iterator[Progress], *, count: int = FRAMES) -> Iterator[Progress]:
    """About `count` of the steps, evenly spread, and the last."""
    shown = -1
    for progress in steps:
        fraction = progress.fraction
        due = math.floor(fraction * count)
        if due > shown or fraction == 1:
            shown = due
            yield progress


def save_animation(path: Path, pictures: list[np.ndarray]) -> None:
    """An endless GIF or WebP, by the name's ending, that rests on the last picture.

    Args:
        path: ends in .gif or .webp.
        pictures: (H, W, 3) uint8 each, all of one size.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    if path.suffix.lower() not in (".gif", ".webp"):
        raise UserError(f"{path} is no animation: choose a name that ends in .gif or .webp")
    first, *others = (Image.fromarray(picture) for picture in pictures)
    file, form = io.BytesIO(), path.suffix[1:].upper()
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    first.save(
        file,
        form,
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        lossless=True,
        **OWN_MARKS[form],
    )
    write_bytes(path, file.getvalue())


def save_tokens(path: Path, **arrays: np.ndarray) -> None:
    """Arrays as an .npz file, for `numpy.load`."""
    with writing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def heat_map(nats: np.ndarray, *, highest: float | None = None) -> np.ndarray:
    """How surprised a model was by each pixel: dark is expected, bright is not.

    Args:
        nats: (..., S, S) float, -log p of each pixel.
        highest: nats that are brightest; none: the 99th percentile, so that one pixel cannot dim
            all others.

    Returns:
        (..., S, S, 3) uint8.
    """
    top = np.percentile(nats, 99) if highest is None else highest
    share = np.clip(nats / max(float(top), 1e-9), 0, 1)
    import matplotlib as mpl  # half a second

    colors: np.ndarray = mpl.colormaps["inferno"](share, bytes=True)[..., :3]
    return colors


def sheet(
    originals: list[np.ndarray], inputs: np.ndarray, keep: np.ndarray, completions: np.ndarray
) -> np.ndarray:
    """A row for each picture: as it came, what the model was given, and what it made of it.

    Titles stand above the columns.

    Args:
        originals: from `framed`.
        inputs: (N, S, S, 3) uint8, as the model sees them.
        keep: (S, S) bool: what the model was given.
        completions: (N, n, S, S, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    titles = ["given", *(f"completion {j + 1}" for j in range(completions.shape[1]))]
    cells = np.concatenate([hide(inputs, keep)[:, None], completions], 1)
    return beside(originals, cells, titles=["original", *titles])


def beside(originals: list[np.ndarray], cells: np.ndarray, *, titles: Sequence[str]) -> np.ndarray:
    """A row for each picture: itself in its own shape, then cells enlarged pixel by pixel.

    Args:
        originals: from `framed`, of this S.
        cells: (N, n, S, S, 3) uint8.
        titles: of the 1 + n columns; what is wider than its column is cut off.

    Returns:
        (H, W, 3) uint8.
    """
    n, S = cells.shape[1:3]
    made = tile(cells.reshape(-1, S, S, 3), n, enlarge=cell_px(S) // S, gap_px=GAP_PX)
    height = cell_px(S)
    width = max(picture.shape[1] for picture in originals)
    column = np.full((made.shape[0], width + GAP_PX, 3), 255, np.uint8)
    for i, picture in enumerate(originals):
        top = GAP_PX + i * (height + GAP_PX)
        start = GAP_PX + width - picture.shape[1]
        column[top : top + height, start : start + picture.shape[1]] = picture
    widths = [column.shape[1], *[height + GAP_PX] * n]
    head = np.full((TITLE_PX, column.shape[1] + made.shape[1], 3), 255, np.uint8)
    for title, end, room in zip(titles, np.cumsum(widths), widths, strict=True):
        head[:, end - room + GAP_PX : end] = _written(title, room - GAP_PX)
    return np.concatenate([head, np.concatenate([column, made], 1)])


def _written(text: str, width: int) -> np.ndarray:
    """A line of text on white: (TITLE_PX, width, 3) uint8."""
    canvas = Image.new("RGB", (width, TITLE_PX), "white")
    font = ImageFont.load_default(13)
    ImageDraw.Draw(canvas).text((0, TITLE_PX - 4), text, fill="black", font=font, anchor="ls")
    return np.asarray(canvas)


def cell_px(side: int) -> int:
    """Height and width of an enlarged picture of S pixels: about `CELL_PX`, whole blocks."""
    return side * max(1, CELL_PX // side)


def framed(original: np.ndarray, side: int) -> np.ndarray:
    """A picture as it stands beside enlarged ones, the square that the model takes framed.

    Args:
        original: (H, W, 3) uint8.
        side: the model's S.

    Returns:
        (height of an enlarged picture, at most twice that, 3) uint8; bars are white.
    """
    height = cell_px(side)
    tall, wide = original.shape[:2]
    scale = min(height / tall, 2 * height / wide)
    size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    # Small pictures keep their pixels visible, large ones are smoothed.
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    picture = Image.fromarray(original).resize(size, way)
    if tall != wide:
        side, (w, h) = min(size), size
        box = ((w - side) // 2, (h - side) // 2, (w + side) // 2 - 1, (h + side) // 2 - 1)
        ImageDraw.Draw(picture).rectangle(box, outline="white", width=3)
        ImageDraw.Draw(picture).rectangle(box, outline="black", width=1)
    canvas = np.full((height, size[0], 3), 255, np.uint8)
    top = (height - size[1]) // 2
    canvas[top : top + size[1]] = np.asarray(picture)
    return canvas
