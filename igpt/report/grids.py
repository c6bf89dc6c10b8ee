"""Grids of samples and completions, to see how a network comes along while it is trained."""

import numpy as np

from igpt import compute
from igpt.generate.pictures import hide
from igpt.images.grid import enlargement, tile
from igpt.pixelmodel import PixelModel

N_SAMPLES = 16
N_COMPLETED = 8
N_COMPLETIONS = 3
KEEP_ROWS = 0.5


# Blocks compiled for training would be compiled again for the shapes met here.
@compute.eager()
def grids(model: PixelModel, originals: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Pictures by name: `samples` (autoregressive only) and `completions`, of the same draws.

    Args:
        model: as it is now.
        originals: (N, S, S, 3) uint8, a row of completions each: given half, draws, original.
        seed: of the draws, the same at every call, so that grids of one run can be compared.

    Returns:
        (H, W, 3) uint8 each.
    """
    found: dict[str, np.ndarray] = {}
    if model.facts.objective == "ar":
        drawn = model.sample(N_SAMPLES, seed=seed)
        found["samples"] = tile(drawn, enlarge=enlargement(model.image_size))
    found["completions"] = completions(model, originals, n=N_COMPLETIONS, seed=seed)
    return found


def completions(model: PixelModel, originals: np.ndarray, *, n: int, seed: int) -> np.ndarray:
    """A row an image: its upper half, n completions of it, the original; (H, W, 3) uint8."""
    drawn = model.complete(originals, keep_rows=KEEP_ROWS, n=n, seed=seed)
    side = model.image_size
    kept = np.broadcast_to(np.arange(side)[:, None] < round(KEEP_ROWS * side), (side, side))
    rows = [hide(originals, kept)[:, None], drawn, originals[:, None]]
    sheet = np.concatenate(rows, axis=1)  # (N, n + 2, S, S, 3)
    flat = sheet.reshape(-1, *sheet.shape[2:])
    return tile(flat, columns=sheet.shape[1], enlarge=enlargement(side))
