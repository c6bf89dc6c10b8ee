"""Fit a palette: k-means over the colours of any number of pixels (paper §3.2)."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from igpt import streams
from igpt.errors import UserError
from igpt.tokens.nearest import CHUNK_PX, N_RGB, rgb_index
from igpt.tokens.tokenizer import ImageArray, image_chunks

_MOST_POINTS = 1 << 18
_MAX_ITER = 30

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
    total = np.zeros(N_RGB)
    for images, weight in sets:
        counts = count_colors(images)
        total += weight / max(1, counts.sum()) * counts
    # k-means sees the same proportions, at a size that rounding cannot harm.
    return _fitted(total / max(total.max(), 1e-300), n_colors, seed)


def _fitted(
    counts: NDArray[np.int64] | NDArray[np.float64], n_colors: int, seed: int
) -> NDArray[np.float32]:
    if not 2 <= n_colors <= 65536:
        raise UserError(f"n_colors is {n_colors}: choose from 2 to 65536")
    index = np.flatnonzero(counts)
    if len(index) == 0:
        raise UserError("there are no images to fit a palette to")
    if len(index) <= n_colors:
        if len(index) < n_colors:
            warnings.warn(
                f"the images hold {len(index)} distinct colours: "
                f"the palette has these, not {n_colors}",
                stacklevel=4,
            )
        return _rgb_of(index).astype(np.float32)
    weights = counts[index].astype(np.float64)
    exact = _rgb_of(index), weights
    fine = exact if len(index) <= _MOST_POINTS else _cell_means(index, weights, bits=6)
    coarse = _cell_means(index, weights, bits=5)
    start = next(points for points in (coarse, fine, exact) if len(points[1]) >= n_colors)
    points = next(points for points in (fine, exact) if len(points[1]) >= n_colors)
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


def _cell_means(index: NDArray[np.intp], weights: NDArray[np.float64], *, bits: int) -> Points:
    """The mean colour and the weight of each cell of the cube that holds any.

    Args:
        index: (n,) colours, by their place in a table.
        weights: (n,) how often each occurs.
        bits: a channel has 2^bits cells.
    """
    red, green, blue = (index >> shift & 255 for shift in (0, 8, 16))
    low = 8 - bits
    cell = (red >> low) | (green >> low) << bits | (blue >> low) << 2 * bits
    size = 1 << 3 * bits
    total = np.bincount(cell, weights, size).astype(np.float64)  # only for its type
    held = np.flatnonzero(total)
    rgb = _rgb_of(index)
    sums = [np.bincount(cell, weights * rgb[:, k], size)[held] for k in range(3)]
    return np.stack(sums, axis=1) / total[held, None], total[held]


def _k_means(points: Points, start: Points, n_colors: int, seed: int) -> NDArray[np.float32]:
    """The centres (K, 3) of weighted k-means, started by k-means++ on fewer points."""
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

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
