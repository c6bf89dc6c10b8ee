"""The whole set on one accelerator, into one JSON: `benchmarks/gpu.sh`.

Needs only Python, torch and numpy, so that a bare PyTorch image will do; transformers takes part
where it is installed, and what needs Pillow and safetensors where those are. The file is written
anew after each part, and a part begins only if time is left, so that whatever stops the run leaves
what was measured. `--tiny` runs all of it on a CPU.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from igpt import compute
from igpt.bench import measure, sample, train
from igpt.bench.train import Size
from igpt.errors import UserError
from igpt.evaluation.likelihood import token_surprise
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, forward_flops
from igpt.probing.features import extract_features

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
    n_judged: int
    """Images whose loss and features are computed."""


WHOLE = Sizes(
    small=Size(1024, 512, 24, 8, 32),
    large=Size(1024, 1536, 48, 16, 8),
    drawn=Size(1024, 512, 24, 8, 64),
    lengths=tuple(Size(T, 512, 8, 8, max(1, 36864 // T)) for T in (256, 1024, 4096, 9216)),
    n_tokens=256,
    n_judged=2048,
)
TINY = Sizes(
    small=Size(16, 32, 1, 2, 4),
    large=Size(16, 64, 2, 2, 2),
    drawn=Size(16, 32, 1, 2, 4),
    lengths=(Size(16, 32, 1, 2, 4), Size(64, 32, 1, 2, 1)),
    n_tokens=8,
    n_judged=8,
)
# What reading weights and pictures takes; whatever only computes does without.
READERS = ("PIL", "safetensors")
N_CLASSES = 1000


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
        "evaluate S": lambda: evaluation_rows(sizes),
        "features S": lambda: feature_rows(sizes),
        **({"probe S": lambda: probe_rows(sizes)} if can_read() else {}),
        **({"finetune S": lambda: tuning_rows(sizes.small)} if can_read() else {}),
        "train L, sketch": lambda: train_rows(sizes.large, ["sketch"]),
        **{f"growth {size}": lambda size=size: growth_rows(size) for size in sizes.lengths},  # type: ignore[misc]
    }


def can_read() -> bool:
    """Whether the packages are there that read weights and pictures."""
    return all(map(importlib.util.find_spec, READERS))


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


def judged(sizes: Sizes) -> tuple[GPT, np.ndarray]:
    """The small network, and tokens (N, T) of as many images as are judged."""
    network = train.lively_network(sizes.small, compute.default_device()).eval()
    shape = sizes.n_judged, sizes.small.seq_len
    return network, np.random.default_rng(0).integers(train.N_COLORS, size=shape)


def spans_of(work: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of our own work, a few times."""
    device = compute.default_device()
    return measure.take_turns({measure.OURS: work}, repeats=3, device=device, at_most_s=ROUND_S)


def forward_rows(sizes: Sizes, name: str, work: Callable[[], object]) -> Rows:
    """A pass over all judged images, of the time that its products would take at best."""
    device, size = compute.default_device(), sizes.small
    shape = Shape(n_colors=train.N_COLORS, seq_len=size.seq_len, objective="ar")
    flops = sizes.n_judged * forward_flops(size.model, shape)
    dtype = compute.choose_dtype("auto", device)
    return measure.rows_of(
        f"{name} of {sizes.n_judged} images {size}",
        spans_of(work),
        limit_s=flops / measure.matrix_rate(device, dtype),
        limit="matrix rate",
        note=compute.name_of(dtype),
    )


def evaluation_rows(sizes: Sizes) -> Rows:
    """The loss of every image, as `igpt evaluate` takes it."""
    network, tokens = judged(sizes)
    return forward_rows(sizes, "evaluate", lambda: token_surprise(network, tokens))


def feature_rows(sizes: Sizes) -> Rows:
    """The features of every layer, as every probe begins."""
    network, tokens = judged(sizes)
    return forward_rows(sizes, "features", lambda: extract_features(network, tokens, keep=False))


def probe_rows(sizes: Sizes) -> Rows:
    """The large probe behind its features: sums of every layer in float64, then ridge."""
    from igpt.probing.large import Moments

    device, size, rng = compute.default_device(), sizes.small, np.random.default_rng(0)
    features = rng.standard_normal((size.n_layer + 1, sizes.n_judged, size.n_embd), np.float32)
    codes = rng.integers(N_CLASSES, size=sizes.n_judged)

    def work() -> None:
        sums = Moments(len(features), size.n_embd, N_CLASSES, device)
        sums.add(features, codes)
        sums.ridge()

    return measure.rows_of(
        f"large probe of {sizes.n_judged} images, {N_CLASSES} classes, {size}",
        spans_of(work),
    )


def tuning_rows(size: Size) -> Rows:
    """A step of fine-tuning with both losses (paper §2.3)."""
    from igpt.evaluation.classifier import Classifier

    device = compute.default_device()
    dtype = compute.choose_dtype("auto", device)
    model = Classifier(train.lively_network(size, device), N_CLASSES).to(device)
    generator = torch.Generator().manual_seed(1)
    shape = size.batch_size, size.seq_len
    tokens = torch.randint(train.N_COLORS, shape, generator=generator).to(device)
    codes = torch.randint(N_CLASSES, shape[:1], generator=generator).to(device)
    update = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        with compute.autocast(device, dtype):
            classes, logits = model(tokens, generate=True)
        loss = F.cross_entropy(classes.float(), codes)
        assert logits is not None
        loss = loss + F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        loss.backward()
        update.step()
        update.zero_grad(set_to_none=True)
        return float(loss.detach())

    step()
    return measure.rows_of(
        f"finetune step {size}",
        spans_of(step),
        note=compute.name_of(dtype),
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
    if not can_read():
        say(f"{' or '.join(READERS)} is not installed: the probe and fine-tuning are not measured")
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
