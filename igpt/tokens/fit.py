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
