"""How time and memory grow with the length T, the batch, the width, the depth, images and ranks.

Each case runs in a process of its own, since peak memory belongs to a process.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igpt import compute
from igpt.bench import measure
from igpt.bench.command import succeed
from igpt.bench.image_growth import FEWEST, image_part
from igpt.bench.train import N_COLORS, Size, lively_network, our_step
from igpt.model.sizes import Shape, train_flops
from igpt.progress import say

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
