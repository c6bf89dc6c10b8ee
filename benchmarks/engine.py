"""Peak memory of a training step at 64 x 64 against 32 x 32; how long a checkpoint stalls a run.

    python benchmarks/engine.py memory        # about 4 minutes on 2 cores
    python benchmarks/engine.py checkpoint    # about 1 minute, with the cache of CIFAR-10 filled
    python benchmarks/engine.py checkpoint-large    # 1 GB of weights; 10 GB of memory, 9 of disk

Prints one JSON document. Every memory trial is a process of its own, so that none inherits what an
earlier one has kept.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from igpt import compute, system
from igpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from igpt.images.prepare import open_data
from igpt.jobs import pretrain as run
from igpt.model.gpt import GPT
from igpt.progress import say
from igpt.recipes import recipe
from igpt.train import loop
from igpt.train.feeding import Ingredient
from igpt.train.folder import read_run
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer
from igpt.train.saving import Saver
from igpt.train.standing import tokenizer_of
from igpt.train.trainer import make_trainer

MODEL = ModelConfig(n_layer=12, n_head=8, n_embd=256)
TOKENS = 8192
REPEATS = 2
SAVES = 20
STEPS = 30


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory", "checkpoint", "checkpoint-large", "trial"])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.what == "trial":
        print(step_bytes(args.image_size, args.precision, compiled=args.compile))
        return
    found = memory() if args.what == "memory" else stall(large=args.what == "checkpoint-large")
    print(json.dumps({"torch": torch.__version__, **found}, indent=2))


def memory() -> dict[str, Any]:
    """Peak bytes at both sizes, in both number types, blocks compiled or not, and their ratio."""
    rows = []
    for precision, compiled in itertools.product(("fp32", "bf16"), (False, True)):
        peaks: dict[int, list[int]] = {32: [], 64: []}
        for _, size in itertools.product(range(REPEATS), peaks):
            words = [sys.executable, __file__, "trial", "--image-size", str(size)]
            words += ["--precision", precision] + (["--compile"] if compiled else [])
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            peaks[size].append(int(done.stdout))
            say(f"{precision}, compiled {compiled}, {size}: {peaks[size][-1] / 1e6:.0f} MB")
        middle = {size: statistics.median(found) for size, found in peaks.items()}
        ratio = middle[64] / middle[32]
        rows.append({"precision": precision, "compiled": compiled, "bytes": peaks, "ratio": ratio})
    return {"model": dataclasses.asdict(MODEL), "tokens_a_batch": TOKENS, "rows": rows}


def step_bytes(image_size: int, precision: compute.Precision, *, compiled: bool) -> int:
    """Peak bytes of this process beyond its start: weights, optimiser, and three steps."""
    compute.set_threads()
    device = torch.device("cpu")
    dtype = compute.choose_dtype(precision, device)

    def steps() -> None:
        network = GPT(MODEL, n_colors=512, seq_len=image_size**2)
        network.init_weights(torch.Generator().manual_seed(0))
        if compiled:
            for block in network.h:
                block.compile(dynamic=False)
        optimizer = Optimizer(network, TrainConfig())
        tokens = torch.randint(512, (TOKENS // image_size**2, image_size**2))
        for _ in range(3):
            with compute.autocast(device, dtype):
                logits = network(tokens)
            loss_sum(logits, tokens, None).backward()
            optimizer.step(1.0)

    before: int = psutil.Process().memory_info().rss
    steps()
    return system.peak_bytes() - before


def stall(*, large: bool) -> dict[str, Any]:
    """Seconds of a step and of a save, at the demo's size or of 1 GB of weights at 8 x 8 pixels."""
    compute.set_threads()
    config: RunConfig = recipe("demo")
    n_steps, n_saves = (6, 5) if large else (STEPS, SAVES)
    if not large:
        data = open_data("cifar10", image_size=DataConfig().image_size // 2)
    else:
        data = open_data("digits", image_size=8)
        config = RunConfig(
            data=DataConfig(image_size=8),
            model=ModelConfig(n_layer=20, n_head=8, n_embd=1024),
            train=TrainConfig(total_steps=100, batch_size=8, micro_batch=8, compile="off"),
        )
    scratch = Path("runs")  # on the disk of the checkout, and ignored by git
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folder = Path(place) / "run"
        sets = [Ingredient(packed=data, augment=config.data.augment)]
        run.begin(folder, config, sets, command=" ".join(sys.argv))
        config, facts = read_run(folder)
        tokenizer = tokenizer_of(folder, config, facts)
        trainer = make_trainer(config, data, folder, tokenizer=tokenizer)
        saver = Saver(trainer)
        step_s, save_s, write_s = [], [], []
        for batch in trainer.stream.prefetch(0, n_steps):
            start_s = time.perf_counter()
            loop.train_step(trainer, batch)
            step_s.append(time.perf_counter() - start_s)
        for _ in range(n_saves):
            start_s = time.perf_counter()
            saver.save()
            save_s.append(time.perf_counter() - start_s)
            saver.wait()
            write_s.append(time.perf_counter() - start_s)
            trainer.step += 1
    return {
        "step_s": spread(step_s[n_steps // 3 :]),
        "save_s": spread(save_s),
        "write_s": spread(write_s),
        "parameters": sum(weight.numel() for weight in trainer.network.parameters()),
        "save_of_write": statistics.median(save_s) / statistics.median(write_s),
        "saves_a_step": statistics.median(save_s) / statistics.median(step_s[n_steps // 3 :]),
    }


def spread(spans_s: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(spans_s), "least": min(spans_s), "most": max(spans_s)}


if __name__ == "__main__":
    main()
