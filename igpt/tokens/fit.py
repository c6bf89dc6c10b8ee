"""The colours of a palette, and the nearest of them to each of the 2^24 RGB values, exactly.

They are fitted by k-means over the colours of any number of pixels (paper §3.2).

The nearest ones are one table. The colour cube is cut into cells of side 64, 16 and 4. From each
cell to its parts only those colours are handed down that are nearest somewhere in the cell; at side
4 two or three of 512 are left, and those are compared value by value. The result is that of
comparing all of them.
"""

import hashlib
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from igpt import streams
from igpt.errors import UserError
from igpt.files import cache_folder, writing
from igpt.tokens.tokenizer import ImageArray, image_chunks

N_RGB = 1 << 24
CHUNK_PX = 1 << 15  # scratch of 256 KiB stays in the second-level cache
_SPLIT = 4  # a cell has 4 x 4 x 4 parts
_ROUNDING = 1e-9  # far above what float64 rounds, far below what separates colours

KEPT_TABLES = 16  # 32 MiB each

Cells = NDArray[np.intp]
Table = NDArray[np.uint8] | NDArray[np.uint16]


def rgb_index(pixels: NDArray[np.uint8], out: NDArray[np.intp]) -> None:
    """Write r + 256 g + 65536 b of each pixel.

    Args:
        pixels: (3 n,) uint8, contiguous.
        out: (n,) intp.
    """
    n = len(out)
    if n == 0:
        return
    # Four bytes at each pixel, the fourth belonging to the next one: three times as fast as three
    # strided channels. The last pixel has no next one.
    words = np.ndarray((n - 1,), np.dtype("<u4"), buffer=pixels, strides=(3,))
    np.bitwise_and(words, np.uint32(0xFFFFFF), out=out[:-1])
    red, green, blue = pixels[-3:].tolist()
    out[-1] = red | green << 8 | blue << 16


def kept_table(colors: NDArray[np.float32], digest: str) -> Table:
    """The table kept under this digest, made and kept first where it is missing or damaged."""
    path = cache_folder() / "tables" / f"{digest}.bin"
    dtype = np.dtype("u1" if len(colors) <= 256 else "<u2")
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        data = np.empty(0, np.uint8)
    body, seal = data[:-32], data[-32:].tobytes()  # views: the table is in memory once
    if body.nbytes == N_RGB * dtype.itemsize and hashlib.sha256(body.data).digest() == seal:
        return body.view(dtype)
    table = nearest_table(colors).astype(dtype, copy=False)
    try:
        with writing(path) as part, part.open("wb") as file:
            file.write(table.data)
            file.write(hashlib.sha256(table.data).digest())
        kept = sorted(path.parent.glob("*.bin"), key=lambda table_path: table_path.stat().st_mtime)
        for oldest in kept[:-KEPT_TABLES]:
            oldest.unlink(missing_ok=True)
    except (UserError, OSError):
        pass  # a cache that cannot be written costs two seconds next time, no more
    return table


def nearest_table(colors: NDArray[np.float32]) -> Table:
    """The index of the nearest colour of every RGB value; ties go to the lower index.

    Nearest is by ((x - c) ** 2).sum() in float64 with x = rgb / 127.5 - 1 (paper §3.2).

    Args:
        colors: (K, 3) float32, K at most 65536.

    Returns:
        (2^24,) uint8 (K <= 256) or uint16, at r + 256 g + 65536 b.
    """
    exact = colors.astype(np.float64)
    table = np.empty((256, 256, 256), np.uint8 if len(colors) <= 256 else np.uint16)  # b, g, r
    fine = table.reshape(64, 4, 64, 4, 64, 4)
    everything = np.arange(len(colors))[None]
    for corner in _parts(np.zeros((1, 3), np.intp), side=256):  # one at a time: less memory
        cells, candidates, count = corner[None], everything, np.array([len(colors)])
        for side in (64, 16, 4):
            candidates, count = _reachable(exact, cells, side, candidates, count)
            if side > 4:
                cells = _parts(cells, side)
                candidates = candidates.repeat(_SPLIT**3, axis=0)
                count = count.repeat(_SPLIT**3)
        for m in np.unique(count):
            some = count == m
            red, green, blue = (cells[some] // 4).T
            winners = _winners(exact, cells[some], candidates[some, :m])
            fine[blue, :, green, :, red, :] = winners
    return table.reshape(-1)


def _parts(cells: Cells, side: int) -> Cells:
    """The corners of the 64 parts of each cell: (n, 3) -> (64 n, 3), r g b."""
    steps = np.arange(_SPLIT) * (side // _SPLIT)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return (cells[:, None] + offsets).reshape(-1, 3)


def _reachable(
    colors: NDArray[np.float64], cells: Cells, side: int, candidates: Cells, count: Cells
) -> tuple[Cells, Cells]:
    """Those candidates of each cell that are nearest, or as near, somewhere in it.

    Let i be nearest to the cell's centre m. The difference of two squared distances is linear in x,
    so colour j beats i in the cell only if d_j(m) - d_i(m) <= 2 half |c_i - c_j|_1.

    Args:
        colors: (K, 3) float64.
        cells: (n, 3) corners, in levels.
        side: of the cells, in levels.
        candidates: (n, M) indices of colours, ascending; those behind `count` are padding.
        count: (n,) candidates of each cell.

    Returns:
        the same two for the candidates that stay.
    """
    center = (cells + (side - 1) / 2) / 127.5 - 1
    half = (side - 1) / 2 / 127.5
    choices = [colors[candidates, channel] for channel in range(3)]  # 3 x (n, M)
    distance = np.zeros(candidates.shape)
    for channel, choice in enumerate(choices):
        distance += (choice - center[:, channel, None]) ** 2
    distance[np.arange(candidates.shape[1]) >= count[:, None]] = np.inf
    first = distance.argmin(axis=1)[:, None]
    reach = np.take_along_axis(distance, first, axis=1) + _ROUNDING
    for choice in choices:
        reach = reach + 2 * half * np.abs(choice - np.take_along_axis(choice, first, axis=1))
    keep = distance <= reach
    count = keep.sum(axis=1)
    order = np.argsort(~keep, axis=1, kind="stable")[:, : count.max()]
    return np.take_along_axis(candidates, order, axis=1), count


def _winners(colors: NDArray[np.float64], cells: Cells, candidates: Cells) -> Cells:
    """The nearest candidate at each value of cells of side 4.

    Args:
        colors: (K, 3) float64.
        cells: (n, 3) corners, in levels.
        candidates: (n, M), ascending.

    Returns:
        (n, 4, 4, 4), b g r.
    """
    winner = np.broadcast_to(candidates[:, 0, None, None, None], (len(cells), 4, 4, 4))
    if candidates.shape[1] == 1:
        return winner
    values = (cells[:, :, None] + np.arange(4)) / 127.5 - 1  # (n, 3, 4)
    nearest = np.full(winner.shape, np.inf)
    for candidate in candidates.T:
        red, green, blue = ((values - colors[candidate][:, :, None]) ** 2).transpose(1, 0, 2)
        distance = red[:, None, None, :] + green[:, None, :, None]
        distance = distance + blue[:, :, None, None]
        closer = distance < nearest
        nearest = np.where(closer, distance, nearest)
        winner = np.where(closer, candidate[:, None, None, None], winner)
    return winner


_MOST_POINTS = 1 << 18
_MAX_ITER = 30
_STRETCH = 1 << 17  # places of the table of counts that are read at once: 12 MiB of scratch at most

Counts = NDArray[np.int64] | NDArray[np.float64]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # (n, 3) in [-1, 1], (n,) weights


def fit_colors(images: ImageArray, n_colors: int, *, seed: int) -> NDArray[np.float32]:
    """The k-means centres of all pixels' colours.

    Each distinct colour counts as often as it occurs; where there are more than 2^18 of them, the
    means of cells of 4 x 4 x 4 levels stand for them. So after counting, neither time nor memory
    grows with the images. The same images and seed give the same palette.

    Args:
        images: (N, S, S, 3) uint8, an array or anything that is sliced like one.
        n_colors: colours K, 2 to 65536.
        seed: of the k-means start.

    Returns:
        (K, 3) float32 in [-1, 1]; fewer rows, with a warning, where there are fewer colours.

    Raises:
        UserError: no images, or a number of colours outside 2 to 65536.
    """
    return _fitted(count_colors(images), n_colors, seed)


def fit_mixed(
    sets: Sequence[tuple[ImageArray, float]], n_colors: int, *, seed: int
) -> NDArray[np.float32]:
    """The k-means centres of several sets, each counting by its weight, whatever its size.

    Args:
        sets: (N, S, S, 3) uint8 images, and their weight.
        n_colors: as for `fit_colors`.
        seed: as for `fit_colors`.

    Raises:
        UserError: as for `fit_colors`.
    """
    return _fitted(_mixed_counts(sets), n_colors, seed)


def _mixed_counts(sets: Sequence[tuple[ImageArray, float]]) -> NDArray[np.float64]:
    """Shares of each RGB value over all sets, the largest being 1."""
    total = np.zeros(N_RGB)
    for images, weight in sets:
        counts = count_colors(images)
        total += weight / max(1, counts.sum()) * counts
    # k-means sees the same proportions, at a size that rounding cannot harm.
    total /= max(total.max(), 1e-300)
    return total


def _fitted(counts: Counts, n_colors: int, seed: int) -> NDArray[np.float32]:
    if not 2 <= n_colors <= 65536:
        raise UserError(f"n_colors is {n_colors}: choose from 2 to 65536")
    n_distinct = int(np.count_nonzero(counts))
    if n_distinct == 0:
        raise UserError("there are no images to fit a palette to")
    if n_distinct <= n_colors:
        if n_distinct < n_colors:
            warnings.warn(
                f"the images hold {n_distinct} distinct colours: "
                f"the palette has these, not {n_colors}",
                stacklevel=4,
            )
        return _exact_colors(counts)[0].astype(np.float32)
    coarse = _cell_means(counts, bits=5)
    points = _exact_colors(counts) if n_distinct <= _MOST_POINTS else _cell_means(counts, bits=6)
    if len(points[1]) < n_colors:
        points = _exact_colors(counts)
    start = coarse if len(coarse[1]) >= n_colors else points
    del counts  # no caller holds them: 128 MiB, as much as scikit-learn takes from here on
    return _k_means(points, start, n_colors, seed)


def count_colors(images: ImageArray) -> NDArray[np.int64]:
    """How often each RGB value occurs: (2^24,) int64, at r + 256 g + 65536 b.

    Args:
        images: (N, S, S, 3) uint8, an array or anything that is sliced like one.

    Raises:
        UserError: images of another type or shape.
    """
    counts = np.zeros(N_RGB, np.int64)
    index = np.empty(CHUNK_PX, np.intp)
    for some in image_chunks(images):
        levels = some.reshape(-1)
        for first in range(0, levels.size, 3 * CHUNK_PX):
            part = levels[first : first + 3 * CHUNK_PX]
            rgb_index(part, index[: part.size // 3])
            np.add.at(counts, index[: part.size // 3], 1)
    return counts


def _rgb_of(index: NDArray[np.intp]) -> NDArray[np.float64]:
    """The colours (n, 3) in [-1, 1] at these places of a table."""
    return np.stack([index & 255, index >> 8 & 255, index >> 16], axis=1) / 127.5 - 1


def _exact_colors(counts: Counts) -> Points:
    """Every colour that occurs, and how often."""
    index = np.flatnonzero(counts)
    return _rgb_of(index), counts[index].astype(np.float64)


def _cell_means(counts: Counts, *, bits: int) -> Points:
    """The mean colour and the weight of each cell of the cube that holds any.

    The table is read a stretch at a time, so that memory does not grow with the colours.

    Args:
        counts: (2^24,) how often each colour occurs.
        bits: a channel has 2^bits cells.
    """
    low, size = 8 - bits, 1 << 3 * bits
    total, sums = np.zeros(size), np.zeros((3, size))
    for first in range(0, N_RGB, _STRETCH):
        index = first + np.flatnonzero(counts[first : first + _STRETCH])
        weights = counts[index].astype(np.float64)
        red, green, blue = (index >> shift & 255 for shift in (0, 8, 16))
        cell = (red >> low) | (green >> low) << bits | (blue >> low) << 2 * bits
        np.add.at(total, cell, weights)
        for channel, levels in zip(sums, _rgb_of(index).T, strict=True):
            np.add.at(channel, cell, weights * levels)
    held = np.flatnonzero(total)
    return sums[:, held].T / total[held, None], total[held]


def _k_means(points: Points, start: Points, n_colors: int, seed: int) -> NDArray[np.float32]:
    """The centres (K, 3) of weighted k-means, started by k-means++ on fewer points."""
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_limits

    random_state = int(streams.stream(seed, "palette").integers(2**32))
    # Several threads add in an order that varies, and the palette's digest would vary with it.
    with threadpool_limits(1):
        first, _ = kmeans_plusplus(
            start[0], n_colors, sample_weight=start[1], random_state=random_state
        )
        found = KMeans(n_colors, init=first, n_init=1, max_iter=_MAX_ITER).fit(
            points[0], sample_weight=points[1]
        )
    centers: NDArray[np.float64] = found.cluster_centers_
    return np.clip(centers, -1, 1).astype(np.float32)
