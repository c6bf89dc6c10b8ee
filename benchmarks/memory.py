"""The most memory of each command, on CIFAR-10 and a small fresh model: a table and a JSON.

    python benchmarks/memory.py FOLDER --out benchmarks/KIND/memory.json

Makes FOLDER; downloads CIFAR-10 if it is not cached. Each command is a process of its own, and the
figure is what the system counted for its largest process. One that takes longer than a minute, or
that the budget does not reach, is left out and named.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from igpt.bench.command import run_command
from igpt.files import write_json

PRETRAIN = "pretrain cifar10 {0}/run --recipe demo --train.total-steps 20 --train.warmup-steps 5"
COMMANDS = [
    "--help",
    "info",
    "prepare cifar10 {0}/packed --image-size 16",
    "palette {0}/packed {0}/palette.npy --image-size 16",
    PRETRAIN,
    "sample {0}/run --n 16 --out {0}/samples.png",
    "complete {0}/run {0}/samples.png --out {0}/completions.png",
    "evaluate {0}/run {0}/packed --max-images 500",
    "probe {0}/run {0}/packed --max-images 500",
    "embed {0}/run {0}/samples.png --out {0}/features.npz",
    "classify {0}/run {0}/samples.png",
    "rank {0}/run {0}/samples.png",
    "report {0}/run",
    "convert {0}/run {0}/theirs --to transformers",
    "finetune {0}/run {0}/packed --max-images 500 --finetune.total-steps 10",
    "lowdata {0}/run {0}/packed --max-images 500 --labels 4",
    "bench sample --quick --against sketch",
    "demo",
]
COMMAND_S = 60.0


def main() -> None:
    """Run all commands in order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--budget-s", type=float, default=240.0, help="of all commands together")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    end_s = time.monotonic() + options.budget_s
    rows = []
    print("| command | peak MiB | seconds | status |", "|---|---|---|---|", sep="\n")
    for line in COMMANDS:
        shown = "igpt " + line.replace("{0}/", "")
        at_most_s = min(COMMAND_S, end_s - time.monotonic())
        command = [sys.executable, "-m", "igpt", *line.format(options.folder).split()]
        done = run_command(command, at_most_s=max(0.0, at_most_s))
        if done.span_s >= at_most_s:
            print(f"{shown}: left out, its time was up", file=sys.stderr)
            continue
        rows.append({"command": shown, **asdict(done)})
        mib = done.peak_bytes / 2**20
        print(f"| `{shown}` | {mib:,.0f} | {done.span_s:.1f} | {done.status} |", flush=True)
        if options.out:
            write_json(options.out, {"rows": rows})


if __name__ == "__main__":
    main()
