"""How time and memory grow with the length T, the batch, the width, the depth, images and ranks.

Each case runs in a process of its own, since peak memory belongs to a process.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from igpt import compute
from igpt.bench import measure
from igpt.bench.train import N_COLORS, Size, lively_network, our_step
from igpt.model.sizes import Shape, train_flops

BASE = Size(256, 128, 4, 8, 32)
# Equal tokens a batch, as nearly as whole images allow.
LENGTHS = tuple(
    replace(BASE, seq_len=T, batch_size=max(1, 8192 // T)) for T in (256, 1024, 2304, 4096, 9216)
)
BATCHES = tuple(replace(BASE, batch_size=B) for B in (8, 16, 32, 64, 128))
WIDTHS = tuple(replace(BASE, n_embd=d) for d in (64, 128, 256, 512))
DEPTHS = tuple(replace(BASE, n_layer=L) for L in (2, 4, 8, 16))
RANKS = (1, 2)
IMAGES = (256, 1024, 4096)
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


def probe_spans(n_images: int) -> list[float]:
    """Seconds of the features of so many images, a batch at a time, kept nowhere; one repeat."""
    from igpt.evaluate.features import stream_features

    compute.set_threads()
    network = lively_network(BASE, compute.default_device()).eval()
    tokens = np.random.default_rng(0).integers(N_COLORS, size=(n_images, BASE.seq_len))
    target = _Nowhere()
    work = {"": lambda: stream_features(target, network, tokens)}
    return measure.take_turns(work, repeats=1)[""]


class _Nowhere:
    def __setitem__(self, place: object, value: object) -> None:
        """Forget."""


def palette_spans(n_images: int) -> list[float]:
    """Seconds of a palette of 64 colours from so many images of noise; one repeat."""
    from igpt.tokens.palette import Palette

    compute.set_threads()
    images = np.random.default_rng(0).integers(256, size=(n_images, 32, 32, 3), dtype=np.uint8)
    images >>= 3  # 2^15 distinct colours at most, as photographs have few
    work = {"": lambda: Palette.fit(images, n_colors=64)}
    return measure.take_turns(work, repeats=1)[""]


def _row(name: str, work: Callable[..., list[float]], case: object, note: str = "") -> measure.Row:
    spans, memory = measure.in_own_process(work, case)
    (row,) = measure.rows_of(name, {measure.OURS: spans}, note=note)
    return replace(row, memory_bytes=memory)


def exponent_of(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _step_rows(label: str, sizes: Sequence[Size], field: str) -> list[measure.Row]:
    """A row for each size, whose last note says how seconds an image grow, and how FLOPs do."""
    rows = [_row(f"step against {label}: {size}", step_spans, size) for size in sizes]
    values = [getattr(size, field) for size in sizes]
    per_image = [row.ours_s / size.batch_size for row, size in zip(rows, sizes, strict=True)]
    flops = [
        float(
            train_flops(size.model, Shape(n_colors=N_COLORS, seq_len=size.seq_len, objective="ar"))
        )
        for size in sizes
    ]
    fitted, needed = exponent_of(values, per_image), exponent_of(values, flops)
    note = f"seconds an image grow as {label}^{fitted:.2f}, operations as {label}^{needed:.2f}"
    rows[-1] = replace(rows[-1], note=note)
    return rows


def _image_rows(
    label: str, work: Callable[[int], list[float]], counts: Sequence[int]
) -> list[measure.Row]:
    rows = [_row(f"{label} of {n} images", work, n) for n in counts]
    fitted = exponent_of(counts, [row.ours_s for row in rows])
    rows[-1] = replace(rows[-1], note=f"seconds grow as images^{fitted:.2f}")
    return rows


def _rank_rows() -> list[measure.Row]:
    """The same global batch on one and two ranks, a core each (gloo, DDP)."""
    rows = []
    for n in RANKS:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(n), "-m", "igpt.bench.ranks"),
        ]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
        spans = [float(word) for word in done.stdout.split()]
        rows += measure.rows_of(f"step of {n} ranks: {BASE}", {measure.OURS: spans})
    share = statistics.median([rows[0].ours_s / rows[-1].ours_s]) / RANKS[-1]
    rows[-1] = replace(rows[-1], note=f"{share:.0%} of a perfect speed-up")
    return rows


def bench_growth(
    peers: Sequence[str], *, quick: bool, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """All rows; every case makes its fixed number of steps."""
    assert not peers and at_most_s > 0
    if quick:
        return _step_rows("T", QUICK, "seq_len")
    rows = _step_rows("T", LENGTHS, "seq_len")
    rows += _step_rows("B", BATCHES, "batch_size")
    rows += _step_rows("d", WIDTHS, "n_embd")
    rows += _step_rows("L", DEPTHS, "n_layer")
    rows += _image_rows("features", probe_spans, IMAGES)
    rows += _image_rows("palette", palette_spans, IMAGES)
    if compute.default_device().type == "cpu":
        rows += _rank_rows()
    return rows
