"""How `igpt prepare`, `palette`, `probe` and `embed` grow with the number of images.

Each is the whole command in processes of its own, as a user would start it, on pictures made here.
"""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from igpt.bench import measure
from igpt.bench.command import succeed
from igpt.bench.data import picture
from igpt.config import ModelConfig
from igpt.model.gpt import GPT
from igpt.pixelmodel import PixelModel
from igpt.tokens.palette import Palette
from igpt.trained import ModelFacts

TIMES = (1, 4, 16)
# Images at 1 x: so few that 16 x takes seconds.
FEWEST = {"prepare": 1000, "palette": 2000, "probe": 250, "embed": 250}
JPEG_SIZE, SMALL_SIZE = 64, 16
N_CLASSES = 10


def inputs_of(command: str, n: int, folder: Path) -> list[str]:
    """The words of `igpt COMMAND` on n new pictures, which are written into a new folder."""
    folder.mkdir(parents=True)
    pictures, out = str(folder / "pictures"), str(folder / "out")
    if command in ("prepare", "embed"):
        write_jpegs(Path(pictures), n)
    else:
        write_arrays(Path(pictures + ".npz"), n)
        pictures += ".npz"
    if command == "prepare":
        return ["prepare", pictures, out]
    if command == "palette":
        return ["palette", pictures, out + ".npy", "--image-size", str(SMALL_SIZE)]
    write_model(folder / "model")
    if command == "probe":
        return ["probe", str(folder / "model"), pictures]
    return ["embed", str(folder / "model"), pictures, "--out", out + ".npz"]


def write_jpegs(folder: Path, n: int) -> None:
    """n JPEGs, in folders of a thousand."""
    for i in range(n):
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        rng = np.random.default_rng(i)
        Image.fromarray(picture(JPEG_SIZE, JPEG_SIZE, rng)).save(file, "JPEG")
        path.write_bytes(file.getvalue())


def write_arrays(path: Path, n: int) -> None:
    """n labelled pictures of the small size."""
    rng = np.random.default_rng(0)
    images = np.stack([picture(SMALL_SIZE, SMALL_SIZE, rng) for _ in range(n)])
    np.savez(path, images=images, labels=np.arange(n) % N_CLASSES)


def write_model(folder: Path) -> None:
    """A small model of random weights."""
    colors = np.random.default_rng(0).uniform(-1, 1, (64, 3)).astype(np.float32)
    network = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64), n_colors=64, seq_len=SMALL_SIZE**2)
    network.init_weights(torch.Generator().manual_seed(0))
    facts = ModelFacts(objective="ar", image_size=SMALL_SIZE, tokens="palette", trained={})
    PixelModel(network, Palette(colors), facts).save(folder)


def image_row(command: str, n: int, folder: Path, at_most_s: float) -> measure.Row | None:
    """Seconds and peak memory of a command on n images; none where its time was up.

    Raises:
        UserError: the command failed.
    """
    words = inputs_of(command, n, folder / f"{command}-{n}")
    done = succeed([sys.executable, "-m", "igpt", *words], at_most_s=at_most_s)
    if done is None:
        return None
    (row,) = measure.rows_of(
        f"{command} {n:,} images",
        {measure.OURS: [done.span_s]},
        note=f"{done.core_s:.1f} core seconds",
    )
    return replace(row, memory_bytes=done.peak_bytes)


def with_growth(rows: Sequence[measure.Row], counts: Sequence[int]) -> list[measure.Row]:
    """The rows, the last of which says how time and memory grew.

    What every start costs falls out of the differences: further images that take as long each as
    those before give 1.
    """
    if len(rows) < len(TIMES):
        return list(rows)
    first, middle, last = (row.ours_s for row in rows)
    early = (middle - first) / (counts[1] - counts[0])
    late = (last - middle) / (counts[2] - counts[1])
    peaks = [row.memory_bytes or 0 for row in rows]
    note = (
        f"{rows[-1].note}; a further image takes {late / early:.2f} x as long after "
        f"{counts[1]:,}; peak memory {peaks[-1] / peaks[0]:.2f} x"
    )
    return [*rows[:-1], replace(rows[-1], note=note)]


def image_part(
    command: str, folder: Path, take: Callable[..., list[measure.Row]]
) -> list[measure.Row]:
    """Rows of one command at 1 x, 4 x and 16 x, as far as `take` reaches."""
    counts = [times * FEWEST[command] for times in TIMES]
    rows = take(counts, lambda n, left_s: image_row(command, n, folder, left_s))
    return with_growth(rows, counts)
