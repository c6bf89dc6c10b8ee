"""How time and memory grow with the length T, the batch, the width, the depth, images and ranks.

Each case runs in a process of its own, since peak memory belongs to a process; with the number of
images grow whole commands, as a user would start them, on pictures made here.
`python -m igpt.bench.growth GROWTH.json PICTURE` draws what was measured.
"""

import io
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from igpt import compute
from igpt.bench import measure
from igpt.bench.command import succeed
from igpt.bench.data import picture
from igpt.bench.train import N_COLORS, Size, lively_network, our_step
from igpt.config import ModelConfig
from igpt.files import read_json
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, train_flops
from igpt.pixelmodel import PixelModel
from igpt.progress import say
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


Rows = list[measure.Row]
Take = Callable[..., Rows]

BASE = Size(256, 128, 4, 8, 32)
# Equal tokens a batch, as nearly as whole images allow.
LENGTHS = tuple(
    replace(BASE, seq_len=T, batch_size=max(1, 8192 // T)) for T in (256, 1024, 2304, 4096, 9216)
)
BATCHES = tuple(replace(BASE, batch_size=B) for B in (8, 16, 32, 64))
WIDTHS = tuple(replace(BASE, n_embd=d) for d in (64, 128, 256, 512))
DEPTHS = tuple(replace(BASE, n_layer=L) for L in (2, 4, 8))
SIZES = {"T": LENGTHS, "B": BATCHES, "d": WIDTHS, "L": DEPTHS}
FIELDS = {"T": "seq_len", "B": "batch_size", "d": "n_embd", "L": "n_layer"}
RANKS = (1, 2)
PARTS = (*SIZES, *FEWEST, "ranks")
QUICK = tuple(Size(T, 32, 1, 4, max(1, 1024 // T)) for T in (256, 1024))


def step_spans(size: Size) -> list[float]:
    """Seconds of five training steps of ours in the number type that training chooses here."""
    compute.set_threads()
    device = compute.default_device()
    network = lively_network(size, device)
    shape = (size.batch_size, size.seq_len)
    tokens = torch.randint(N_COLORS, shape, generator=torch.Generator().manual_seed(1))
    step = our_step(network, tokens.to(device), compute.choose_dtype("auto", device))
    step()  # compiles
    return measure.take_turns({"": step}, device=device)[""]


def step_row(label: str, size: Size, left_s: float) -> measure.Row | None:
    """Seconds and peak memory of our step at one size; none where its time was up."""
    found = measure.in_own_process(step_spans, size, at_most_s=left_s)
    if found is None:
        return None
    spans, memory = found
    (row,) = measure.rows_of(f"step against {label}: {size}", {measure.OURS: spans})
    return replace(row, memory_bytes=memory)


def exponent_of(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def step_part(label: str, sizes: Sequence[Size], take: Take) -> Rows:
    """A row for each size, whose last note says how seconds an image grow, and how FLOPs do."""
    rows = take(sizes, lambda size, left_s: step_row(label, size, left_s))
    reached = sizes[: len(rows)]
    if len(rows) < 2:
        return rows
    values = [getattr(size, FIELDS[label]) for size in reached]
    per_image = [row.ours_s / size.batch_size for row, size in zip(rows, reached, strict=True)]
    flops = [
        float(
            train_flops(size.model, Shape(n_colors=N_COLORS, seq_len=size.seq_len, objective="ar"))
        )
        for size in reached
    ]
    fitted, needed = exponent_of(values, per_image), exponent_of(values, flops)
    note = f"seconds an image grow as {label}^{fitted:.2f}, operations as {label}^{needed:.2f}"
    rows[-1] = replace(rows[-1], note=note)
    return rows


def rank_row(n: int, left_s: float) -> measure.Row | None:
    """The same global batch on n ranks, a core each (gloo, DDP); none where its time was up."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(n), "-m", "igpt.bench.ranks"),
    ]
    with tempfile.NamedTemporaryFile("r") as file:
        alone = ["env", "OMP_NUM_THREADS=1", *command, file.name]
        done = succeed(alone, at_most_s=left_s)
        if done is None:
            return None
        spans = [float(word) for word in file.read().split()]
    (row,) = measure.rows_of(f"step of {n} ranks: {BASE}", {measure.OURS: spans})
    return replace(row, memory_bytes=done.peak_bytes)


def rank_part(take: Take) -> Rows:
    """One and two ranks, and how much of a perfect speed-up the second gives."""
    rows = take(RANKS, rank_row)
    if len(rows) == len(RANKS):
        share = rows[0].ours_s / rows[-1].ours_s / RANKS[-1]
        rows[-1] = replace(rows[-1], note=f"{share:.0%} of a perfect speed-up")
    return rows


def taking(part: str, at_most_s: float) -> Take:
    """How a part goes through its cases: as many as fit into its time; those left out are said."""
    end_s = time.perf_counter() + at_most_s

    def take(cases: Sequence[Any], row_of: Callable[[Any, float], measure.Row | None]) -> Rows:
        rows: Rows = []
        for case in cases:
            left_s = end_s - time.perf_counter()
            row = row_of(case, left_s) if left_s > 0 else None
            if row is None:
                say(f"growth with {part}: left out from {case} on, {at_most_s:.0f} s are spent")
                break
            rows.append(row)
        return rows

    return take


def bench_growth(
    peers: Sequence[str],
    *,
    quick: bool,
    at_most_s: float = float("inf"),
    parts: Sequence[str] = PARTS,
) -> Rows:
    """The rows of the parts that are named; each part ends after so many seconds, done or not."""
    assert not peers
    if quick:
        return step_part("T", QUICK, taking("T", at_most_s))
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="igpt-growth-") as folder:
        for part in parts:
            take = taking(part, at_most_s)
            if part in SIZES:
                rows += step_part(part, SIZES[part], take)
            elif part == "ranks":
                rows += rank_part(take)
            else:
                rows += image_part(part, Path(folder), take)
    return rows


def lines_of(rows: list[dict[str, Any]], label: str) -> tuple[list[int], list[float], list[float]]:
    """Sizes, milliseconds an image and peak MiB of the steps measured against `label`."""
    sizes, spans, memory = [], [], []
    for row in rows:
        if not row["row"].startswith(f"step against {label}:"):
            continue
        found = dict(re.findall(r"(\w)=(\d+)", row["row"]))
        sizes.append(int(found[label]))
        spans.append(1e3 * row["ours_s"] / int(found["B"]))
        memory.append(row["memory_bytes"] / 2**20)
    return sizes, spans, memory


def draw(document: dict[str, Any], path: Path) -> None:
    """Time an image and memory against T, B, d and L, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, 4)
    for column, label in enumerate("TBdL"):
        sizes, spans, memory = lines_of(document["rows"], label)
        top, bottom = axes[0, column], axes[1, column]
        top.loglog(sizes, spans, "o-")
        top.set_yticks([spans[0], spans[-1]], [f"{span:,.1f}" for span in (spans[0], spans[-1])])
        bottom.semilogx(sizes, memory, "o-")
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel(label)
        for axis in (top, bottom):
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("ms an image")
    axes[1, 0].set_ylabel("peak MiB")
    figure.savefig(path)


if __name__ == "__main__":
    draw(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
