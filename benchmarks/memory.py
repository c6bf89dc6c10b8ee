"""The most memory of each command, on CIFAR-10 and a small fresh model; a table in Markdown.

    python benchmarks/memory.py FOLDER        (makes FOLDER; downloads CIFAR-10 if it is not cached)

Each command is a process of its own, and the figure is what the system counted for it.
"""

import os
import sys
import time
from pathlib import Path

PRETRAIN = "pretrain cifar10 {0}/run --recipe demo --train.total-steps 20 --train.warmup-steps 5"
COMMANDS = [
    "--help",
    "info",
    "prepare cifar10 {0}/packed --image-size 16",
    "palette {0}/packed {0}/palette.npy --data.image-size 16",
    PRETRAIN,
    "evaluate {0}/run {0}/packed --max-images 2000",
    "probe {0}/run {0}/packed --max-images 5000",
    "finetune {0}/run {0}/packed --max-images 2000 --finetune.total-steps 20",
    "lowdata {0}/run {0}/packed --max-images 2000",
    "sample {0}/run --n 16 --out {0}/samples.png",
    "complete {0}/run {0}/samples.png --out {0}/completions.png",
    "embed {0}/run {0}/samples.png --out {0}/features.npz",
    "classify {0}/run {0}/samples.png",
    "report {0}/run",
    "convert {0}/run {0}/theirs --to transformers",
    "bench train --quick",
    "bench sample --quick",
    "bench probe --quick",
]


def measured(arguments: list[str]) -> tuple[int, float, int]:
    """Exit status, seconds and the most MiB of one command."""
    command = [sys.executable, "-m", "igpt", *arguments]
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    start_s = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=silent)
    _, status, usage = os.wait4(process, 0)
    span_s = time.perf_counter() - start_s
    return os.waitstatus_to_exitcode(status), span_s, usage.ru_maxrss // 1024


def main() -> None:
    """Run all commands in order."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    print("| command | peak MiB | seconds | status |", "|---|---|---|---|", sep="\n")
    for line in COMMANDS:
        arguments = [word.format(folder) for word in line.split()]
        status, span_s, mib = measured(arguments)
        shown = line.replace("{0}/", "")
        print(f"| `igpt {shown}` | {mib:,} | {span_s:.1f} | {status} |", flush=True)


if __name__ == "__main__":
    main()
