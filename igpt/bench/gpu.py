"""The whole set on one accelerator, into one JSON: `benchmarks/gpu.sh`.

Needs only Python, torch and numpy, so that a bare PyTorch image will do; transformers takes part
where it is installed. The file is written anew after each part, and a part begins only if time is
left, so that whatever stops the run leaves what was measured. `--tiny` runs all of it on a CPU.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from igpt import compute
from igpt.bench import measure, sample, train
from igpt.bench.train import Size
from igpt.errors import UserError

Rows = list[measure.Row]
ROUND_S = 12.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    small: Size
    large: Size
    drawn: Size
    lengths: tuple[Size, ...]
    n_tokens: int


WHOLE = Sizes(
    small=Size(1024, 512, 24, 8, 32),
    large=Size(1024, 1536, 48, 16, 8),
    drawn=Size(1024, 512, 24, 8, 64),
    lengths=tuple(Size(T, 512, 8, 8, max(1, 36864 // T)) for T in (256, 1024, 4096, 9216)),
    n_tokens=256,
)
TINY = Sizes(
    small=Size(16, 32, 1, 2, 4),
    large=Size(16, 64, 2, 2, 2),
    drawn=Size(16, 32, 1, 2, 4),
    lengths=(Size(16, 32, 1, 2, 4), Size(64, 32, 1, 2, 1)),
    n_tokens=8,
)


def say(text: str) -> None:
    """A line for who watches; `igpt.progress` would need rich."""
    print(text, file=sys.stderr, flush=True)


def parts_of(sizes: Sizes, peers: list[str]) -> dict[str, Callable[[], Rows]]:
    """Each part by its name, the most important first."""
    training = [peer for peer in peers if peer != "mingpt"]
    return {
        "train S": lambda: train_rows(sizes.small, training),
        "train L": lambda: train_rows(sizes.large, []),
        "train S, peers' float32": lambda: train_rows(sizes.small, ["sketch"], torch.float32),
        "sample S": lambda: sample_rows(sizes, peers, sizes.n_tokens),
        "sample S whole": lambda: sample_rows(sizes, [], sizes.drawn.seq_len),
        "train L, sketch": lambda: train_rows(sizes.large, ["sketch"]),
        **{f"growth {size}": lambda size=size: growth_rows(size) for size in sizes.lengths},  # type: ignore[misc]
    }


def train_rows(size: Size, peers: list[str], dtype: torch.dtype = torch.bfloat16) -> Rows:
    """A training step beside peers."""
    return train.bench_size(size, peers, dtype, at_most_s=ROUND_S)


def sample_rows(sizes: Sizes, peers: list[str], n_tokens: int) -> Rows:
    """Drawing with the cache beside peers that have one."""
    network = train.lively_network(sizes.drawn, compute.default_device()).eval()
    cached = [peer for peer in peers if peer != "mingpt"]
    return sample.bench_tokens(
        network,
        cached,
        n_images=sizes.drawn.batch_size,
        n_tokens=n_tokens,
        repeats=3,
        at_most_s=ROUND_S,
    )


def growth_rows(size: Size) -> Rows:
    """Our step alone with its peak memory."""
    device = compute.default_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows = train.bench_size(size, [], torch.bfloat16, at_most_s=ROUND_S)
    return [replace(row, memory_bytes=compute.peak_memory_bytes(device)) for row in rows]


def run(sizes: Sizes, path: Path, budget_s: float) -> Rows:
    """All parts until the time is up; what fails is named and left out."""
    start_s = time.perf_counter()
    peers = ["sketch"]
    if importlib.util.find_spec("transformers"):
        peers.insert(0, "transformers")
    else:
        say("transformers is not installed: measured against the sketch alone")
    rows: Rows = []
    for name, part in parts_of(sizes, peers).items():
        spent_s = time.perf_counter() - start_s
        if spent_s > budget_s:
            say(f"{name}: left out, {budget_s:.0f} s are spent")
            continue
        try:
            rows += part()
        except (UserError, RuntimeError, torch.OutOfMemoryError) as error:
            say(f"{name}: left out: {str(error).splitlines()[0]}")
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        measure.write(path, rows)
        say(f"{name}: done after {time.perf_counter() - start_s:.0f} s")
    return rows


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Measure the whole set on one accelerator.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, for a test")
    parser.add_argument("--budget-s", type=float, default=420.0, help="no part begins after this")
    chosen = parser.parse_args()
    if not (chosen.tiny or torch.cuda.is_available()):
        sys.exit("igpt: error: no GPU is found: run on a machine that has one, or add --tiny")
    compute.set_threads()
    print(measure.table(run(TINY if chosen.tiny else WHOLE, chosen.out, chosen.budget_s)))


if __name__ == "__main__":
    main()
