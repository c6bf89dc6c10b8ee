"""The nearest palette colour of each of the 2^24 RGB values, exactly, as one table.

The colour cube is cut into cells of side 64, 16 and 4. From each cell to its parts only those
colours are handed down that are nearest somewhere in the cell; at side 4 two or three of 512 are
left, and those are compared value by value. The result is that of comparing all of them.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UserError
from igpt.files import cache_folder, writing

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
