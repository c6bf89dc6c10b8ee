"""How the time to draw grows with the batch and with the length, and its share of the limit.

    python benchmarks/sample_growth.py --out benchmarks/KIND/sample_growth.json

About four minutes on two idle cores. Each row is drawn as `igpt sample` draws, in turn with the
others. `--clock cpu` counts processor seconds of one thread, for a machine that others keep busy:
a wall clock would time them. The limit is the time to read once a token all matrices, and of the
cache what is filled, at the speed at which this machine reads as much memory from large pages.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from igpt import compute
from igpt.bench import measure
from igpt.bench.sample import draw_tokens, read_bytes, read_rate
from igpt.bench.train import Size, lively_network
from igpt.model.decoder import open_decoder
from igpt.model.gpt import GPT

BATCHES = (1, 4, 16, 64, 256)
LENGTHS = (1024, 2304, 4096)
LENGTH_BATCH = 1


@dataclasses.dataclass(frozen=True)
class Work:
    """Images side by side, and how many of their tokens are drawn."""

    seq_len: int
    batch_size: int
    n_tokens: int

    def __str__(self) -> str:
        return f"T={self.seq_len} B={self.batch_size}, {self.n_tokens} tokens"


def rounds_of(
    networks: dict[int, GPT], works: list[Work], *, repeats: int
) -> Iterator[dict[Work, list[float]]]:
    """Seconds of each work so far, after each round, and after a short warm-up."""
    spans: dict[Work, list[float]] = {work: [] for work in works}
    for work in works:
        draw_tokens(networks[work.seq_len], work.batch_size, 8)
    for i in range(repeats):
        for work in works:
            start_s = measure.now_s()
            draw_tokens(networks[work.seq_len], work.batch_size, work.n_tokens)
            spans[work].append(measure.now_s() - start_s)
            print(f"{i + 1}/{repeats} {work}: {spans[work][-1]:.2f} s", file=sys.stderr, flush=True)
        yield spans


def rows_of(networks: dict[int, GPT], spans: dict[Work, list[float]]) -> list[dict[str, Any]]:
    """A row a work: median, spread, and the share of what reading allows."""
    rows = []
    for work, found in spans.items():
        network = networks[work.seq_len]
        decoder = open_decoder(network)
        n_bytes = read_bytes(network, work.batch_size, work.n_tokens)
        rate = read_rate(network, work.batch_size, work.n_tokens)
        middle_s = statistics.median(found)
        rows.append(
            {
                **dataclasses.asdict(work),
                "median_s": middle_s,
                "spread": measure.spread_of(found),
                "repeats": len(found),
                "tokens_per_s": work.batch_size * work.n_tokens / middle_s,
                "read_bytes": n_bytes,
                "read_bytes_per_s": rate,
                "share_of_limit": n_bytes / rate / middle_s,
                "dtype": str(decoder.dtype).removeprefix("torch."),
            }
        )
    return rows


def exponents(rows: list[dict[str, Any]], key: str) -> list[float]:
    """log time over log `key` between each row and the next."""
    return [
        math.log(b["median_s"] / a["median_s"]) / math.log(b[key] / a[key])
        for a, b in pairwise(rows)
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    compute.set_threads()
    networks = {
        T: lively_network(Size(T, 256, 12, 8, 1), torch.device("cpu")).eval() for T in LENGTHS
    }
    by_batch = [Work(1024, B, 256) for B in BATCHES]
    by_length = [Work(T, LENGTH_BATCH, T) for T in LENGTHS]
    works = [*by_batch, *by_length, Work(1024, 16, 1024)]
    with measure.counting(options.clock):
        for spans in rounds_of(networks, works, repeats=options.repeats):
            document = document_of(rows_of(networks, spans))
            options.out.write_text(json.dumps(document, indent=1) + "\n")


def document_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept, after every round, so that one which is cut short leaves the others."""
    by_batch, by_length = rows[: len(BATCHES)], rows[len(BATCHES) : -1]
    return {
        "machine": measure.machine(),
        "command": " ".join(["python", "benchmarks/sample_growth.py", *sys.argv[1:]]),
        "network": "d=256 L=12 H=8 K=512, random weights, seed 0",
        "rows": rows,
        "exponent_of_batch": exponents(by_batch, "batch_size"),
        "exponent_of_length": exponents(by_length, "seq_len"),
        "whole_over_256": {
            "B=1": by_length[0]["median_s"] / by_batch[0]["median_s"],
            "B=16": rows[-1]["median_s"] / by_batch[BATCHES.index(16)]["median_s"],
        },
    }


if __name__ == "__main__":
    main()
