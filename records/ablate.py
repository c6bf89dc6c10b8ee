"""One factor at a time on a small network: what is worth a long run (records/README.md).

Each trial trains a proxy on CIFAR-10 at 16 x 16 on one thread, measures its loss on validation
images and probes every layer on a few labels, and leaves one line in `ablations.jsonl`. Test images
are never looked at. Time is the process's own CPU time, so that a shared machine does not count.

    python records/ablate.py FACTOR SEED [FACTOR SEED ...]      (no arguments: the factors' names)

The same command goes on where it was stopped: a trial whose line is there is not run again.

A factor that ends in .npy is another palette; losses under different palettes do not compare.
"""

import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from variants import PooledStream, Stepper, Steps, ramped

from igpt import compute, files, streams
from igpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from igpt.images.packed.read import PackedSet
from igpt.images.prepare import open_data
from igpt.images.splits import Split
from igpt.model import gpt
from igpt.model.compiling import compile_blocks
from igpt.model.gpt import GPT
from igpt.probing.features import pooled_layers
from igpt.probing.protocol import Labelled, probe_layers
from igpt.probing.solve import labels_of
from igpt.tokens.batches import BatchStream
from igpt.tokens.palette import Palette
from igpt.train.objectives import loss_sum
from igpt.train.optim import clip_gradients, lr_factor_at

RESULTS = Path(__file__).with_name("ablations.jsonl")
IMAGES_SEEN = 4000
N_VALID = 500
N_PROBED = 3000
N_PROBE_VALID = 2000
STRENGTHS = (1e-3, 1e-2, 1e-1)
DTYPE = compute.choose_dtype("auto", torch.device("cpu"))
"""Of the products: whichever is faster here. The two differ in loss by less than seeds do."""

BASE = RunConfig(
    data=DataConfig(image_size=16, augment="flip"),
    model=ModelConfig(n_layer=4, n_head=2, n_embd=64),
    train=TrainConfig(
        optimizer="muon",
        lr=3e-3,
        muon_lr=8e-3,
        zero_outputs=True,
        batch_size=16,
        total_steps=IMAGES_SEEN // 16,
        warmup_steps=25,
        schedule="linear",
        decay_fraction=0.5,
        precision="bf16",
    ),
)


@dataclass(frozen=True)
class Factor:
    """What a trial changes: settings of the package, and parts that the package does not have."""

    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    patch: Callable[[GPT], None] | None = None
    """Changes the network before its weights are drawn into it."""
    ema: float = 0.0
    """Decay of a running mean of the weights that is judged in their place; 0: none."""
    steps: Steps = dataclasses.field(default_factory=Steps)
    """How the weights are updated."""
    floor: float = 0.0
    """The rate never falls below this share of its peak."""
    sizes: tuple[int, ...] = ()
    """Batch sizes one after another, each for an equal share of the images; none: one size."""
    pool: int = 0
    """Only the first so many training images are seen; 0: all."""
    alternate: bool = False
    """Of a pool: images are mirrored every other time, in place of by chance."""
    probed: bool = True
    """Whether features are probed, which costs as much as the training."""


class NormedAttention(gpt.Attention):
    """Queries and keys normalised to length sqrt(E), times a learned gain a head."""

    gain: Tensor

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        assert cache is None
        B, T, D = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, D // self.n_head)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, H, T, E)
        q, k = (F.rms_norm(part, part.shape[-1:]) for part in (q, k))
        q = q * self.gain.view(1, -1, 1, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


def norm_queries_and_keys(network: GPT) -> None:
    """Put `NormedAttention` in every block."""
    for block in network.h:
        attention = cast(nn.Module, block.attn)
        attention.__class__ = NormedAttention
        attention.gain = nn.Parameter(torch.ones(network.config.n_head))


class RowsAndColumns(nn.Module):
    """A position table that adds what a row and a column share to what each place has alone."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(side * side, width))
        self.row = nn.Parameter(torch.zeros(side, 1, width))
        self.column = nn.Parameter(torch.zeros(1, side, width))

    @property
    def weight(self) -> Tensor:
        """(T, D)."""
        return self.place + (self.row + self.column).flatten(0, 1)


def know_rows_and_columns(network: GPT) -> None:
    """Replace the position table by `RowsAndColumns`."""
    network.wpe = RowsAndColumns(math.isqrt(network.seq_len), network.config.n_embd)


class SquaredRelu(gpt.MLP):
    """The MLP with relu(x)^2 as its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())  # type: ignore[no-any-return]


def square_relus(network: GPT) -> None:
    """Put `SquaredRelu` in every block."""
    for block in network.h:
        block.mlp.__class__ = SquaredRelu


class ScaledBlock(gpt.Block):
    """A block whose two halves are scaled by learned numbers, one a channel."""

    def forward(self, h: Tensor, cache: Any = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        assert cache is None
        a = h + self.scale_1 * self.attn(self.ln_1(h))
        return a + self.scale_2 * self.mlp(self.ln_2(a))  # type: ignore[no-any-return]


def scale_residuals(network: GPT) -> None:
    """Put `ScaledBlock` everywhere, with scales that begin at 1 / sqrt(2 L)."""
    start = 1 / math.sqrt(2 * len(network.h))
    for block in network.h:
        block.__class__ = ScaledBlock
        for name in ("scale_1", "scale_2"):
            setattr(block, name, nn.Parameter(torch.full((network.config.n_embd,), start)))


SHORT_DECAY_OF_8 = {"batch_size": 8, "total_steps": IMAGES_SEEN // 8, "decay_fraction": 0.2}
FACTORS: dict[str, Factor] = {
    "base": Factor(),
    "paper-optimizer": Factor(train={"optimizer": "adamw"}),
    "paper-recipe": Factor(
        train={"optimizer": "adamw", "zero_outputs": False, "schedule": "cosine"},
        data={"augment": "none"},
    ),
    # The same CPU time as the base: its steps are a third dearer (Muon).
    "paper-recipe-equal-time": Factor(
        train={
            "optimizer": "adamw",
            "zero_outputs": False,
            "schedule": "cosine",
            "total_steps": IMAGES_SEEN * 4 // 3 // 16,
        },
        data={"augment": "none"},
    ),
    "paper-init": Factor(train={"zero_outputs": False}),
    "cosine": Factor(train={"schedule": "cosine"}),
    "short-decay": Factor(train={"decay_fraction": 0.2}),
    "constant": Factor(train={"schedule": "constant"}),
    "constant-ema": Factor(train={"schedule": "constant"}, ema=0.97),
    "no-flips": Factor(data={"augment": "none"}),
    "shifts": Factor(data={"augment": "cifar"}),
    "batch-8": Factor(train={"batch_size": 8, "total_steps": IMAGES_SEEN // 8}),
    "batch-32": Factor(train={"batch_size": 32, "total_steps": IMAGES_SEEN // 32}),
    "qk-norm": Factor(patch=norm_queries_and_keys),
    "rows-columns": Factor(patch=know_rows_and_columns),
    "squared-relu": Factor(patch=square_relus),
    "residual-scale": Factor(patch=scale_residuals),
    "wide": Factor(model={"n_layer": 2, "n_embd": 96, "n_head": 3}),
    "deep": Factor(model={"n_layer": 7, "n_embd": 48, "n_head": 2}),
    "muon-lr-half": Factor(train={"muon_lr": 4e-3}),
    "muon-lr-double": Factor(train={"muon_lr": 16e-3}),
    "weight-decay": Factor(train={"weight_decay": 0.1}),
    "one-head": Factor(model={"n_head": 1}),
    # Changes that the file format does not see (entry 6), judged by the loss alone.
    "again": Factor(probed=False),
    "qkv-parts": Factor(steps=Steps(split="parts"), probed=False),
    "qkv-heads": Factor(steps=Steps(split="heads"), probed=False),
    "embed-rate-x4": Factor(steps=Steps(rates={"wte": 4, "wpe": 4, "sos": 4}), probed=False),
    "head-rate-third": Factor(steps=Steps(rates={"head": 1 / 3}), probed=False),
    "head-rate-x3": Factor(steps=Steps(rates={"head": 3}), probed=False),
    "gains-rate-x4": Factor(steps=Steps(rates={"h.": 4, "ln_f": 4}), probed=False),
    "short-decay-again": Factor(train={"decay_fraction": 0.2}, probed=False),
    "short-decay-ema": Factor(train={"decay_fraction": 0.2}, ema=0.97, probed=False),
    "cautious-decay": Factor(steps=Steps(cautious_decay=1.0), probed=False),
    "warm-momentum": Factor(steps=Steps(warm_momentum=True), probed=False),
    "floor": Factor(floor=0.08, probed=False),
    "batch-8-again": Factor(train={"batch_size": 8, "total_steps": IMAGES_SEEN // 8}, probed=False),
    "batch-ramp": Factor(sizes=(8, 16, 32), probed=False),
    "batch-ramp-4": Factor(sizes=(4, 8, 16), probed=False),
    "normed-rows": Factor(steps=Steps(norm_rows=True), probed=False),
    # What the rates apart from each other led to (entry 9): one rate for all that Muon leaves.
    "adam-rate-x2": Factor(train={"lr": 6e-3}, probed=False),
    "adam-rate-x3": Factor(train={"lr": 9e-3}, probed=False),
    "adam-rate-x5": Factor(train={"lr": 15e-3}, probed=False),
    "batch-8-short-decay": Factor(train=SHORT_DECAY_OF_8, probed=False),
    "batch-8-short-decay-adam-x3": Factor(train={"lr": 9e-3, **SHORT_DECAY_OF_8}, probed=False),
    "batch-8-short-decay-adam-x5": Factor(train={"lr": 15e-3, **SHORT_DECAY_OF_8}, probed=False),
    "pool-1000": Factor(pool=1000, probed=False),
    "pool-1000-alternate": Factor(pool=1000, alternate=True, probed=False),
    "pool-1000-cautious-decay": Factor(pool=1000, steps=Steps(cautious_decay=1.0), probed=False),
}
# The scaling curve: three sizes, each at three budgets.
for _width, _depth, _heads in ((32, 3, 1), (64, 4, 2), (128, 5, 2)):
    for _images in (1000, 4000, 16000):
        FACTORS[f"size-{_width}x{_depth}-images-{_images}"] = Factor(
            model={"n_layer": _depth, "n_embd": _width, "n_head": _heads},
            train={"total_steps": _images // 16},
        )


def configured(factor: Factor, seed: int) -> RunConfig:
    """The base with a factor's settings."""
    return dataclasses.replace(
        BASE,
        seed=seed,
        data=dataclasses.replace(BASE.data, **factor.data),
        model=dataclasses.replace(BASE.model, **factor.model),
        train=dataclasses.replace(BASE.train, **factor.train),
    )


def make_proxy(factor: Factor, config: RunConfig) -> GPT:
    """The network of a trial with its first weights, its blocks compiled."""
    network = GPT(config.model, n_colors=config.data.n_colors, seq_len=config.data.seq_len)
    if factor.patch is not None:
        factor.patch(network)
    generator = torch.Generator().manual_seed(streams.torch_seed(config.seed, "init"))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "gain" in name or "scale_" in name:
                continue
            network.fill_initial(name, parameter, generator)
            if config.train.zero_outputs and name.endswith("c_proj.weight"):
                parameter.zero_()
    compile_blocks(network)
    return network


def train(
    network: GPT, config: RunConfig, factor: Factor, tokens_at: Callable[[int], np.ndarray]
) -> tuple[GPT, float]:
    """The trained network (or the running mean of its weights) and the CPU seconds it took."""
    optimizer = Stepper(network, config.train, factor.steps)
    mean = [p.detach().clone() for p in network.parameters()]
    nats = torch.compile(loss_sum, dynamic=False)
    total = config.train.total_steps
    start_s = time.process_time()
    for step in range(total):
        if step == 2:
            start_s = time.process_time()  # the first ones compile
        tokens = torch.from_numpy(tokens_at(step))
        with compute.autocast(torch.device("cpu"), DTYPE):
            logits = network(tokens)
        (nats(logits, tokens, None) / tokens.numel()).backward()
        clip_gradients(network.parameters(), config.train.grad_clip_norm)
        rate = lr_factor_at(step, config.train, config.train.warmup_steps or 0)
        optimizer.step(max(rate, factor.floor), step / total)
        if factor.ema:
            for held, parameter in zip(mean, network.parameters(), strict=True):
                held.lerp_(parameter.detach(), 1 - factor.ema)
    span_s = time.process_time() - start_s
    if factor.ema:
        network = copy.deepcopy(network)
        with torch.no_grad():
            for held, parameter in zip(mean, network.parameters(), strict=True):
                parameter.copy_(held)
    return network, span_s


def stream_of(
    factor: Factor, config: RunConfig, data: PackedSet, palette: Palette
) -> tuple[RunConfig, Callable[[int], np.ndarray]]:
    """The tokens (B, T) of each step, and the configuration with as many steps as there are."""
    batch_size, seed = config.train.batch_size, config.seed
    if factor.pool:
        pooled = PooledStream(
            data,
            palette,
            n=factor.pool,
            batch_size=batch_size,
            seed=seed,
            alternate=factor.alternate,
        )
        return config, pooled.tokens_at
    streams_of_size = {
        size: BatchStream(
            data.images("train"),
            None,
            palette,
            batch_size=size,
            seed=seed,
            augment=config.data.augment,
        )
        for size in factor.sizes or (batch_size,)
    }
    if not factor.sizes:
        return config, lambda step: streams_of_size[batch_size].at(step).tokens
    plan = ramped(config.train.total_steps * batch_size, factor.sizes)
    longer = dataclasses.replace(config.train, total_steps=len(plan))
    # A smaller batch's step s begins after s of its own size: nothing seen comes again too soon.
    firsts = [sum(plan[:step]) // size for step, size in enumerate(plan)]
    return (
        dataclasses.replace(config, train=longer),
        lambda step: streams_of_size[plan[step]].at(firsts[step]).tokens,
    )


@torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]
@torch.inference_mode()
def judge(network: GPT, tokens: np.ndarray, layers: bool) -> tuple[float, np.ndarray | None]:
    """Mean nats per token, and where asked the pooled features (L + 1, N, D)."""
    total, features = 0.0, []
    for start in range(0, len(tokens), 50):
        batch = torch.from_numpy(tokens[start : start + 50])
        with compute.autocast(torch.device("cpu"), DTYPE):
            if layers:
                chosen = range(len(network.h) + 1)
                features.append(pooled_layers(network, batch, None, layers=chosen).numpy())
            else:
                total += float(loss_sum(network(batch), batch, None))
    return total / tokens.size, np.concatenate(features, 1) if layers else None


def run_trial(name: str, seed: int) -> dict[str, Any]:
    """Train, measure and probe one proxy."""
    torch._dynamo.reset()
    if name.endswith(".npy"):  # another palette, such as the authors'
        factor, name = Factor(data={"palette": name}), f"palette {Path(name).stem}"
    else:
        factor = FACTORS[name]
    config = configured(factor, seed)
    data = open_data("cifar10", image_size=16, seed=0, valid_fraction=0.1)
    palette = (
        _palette(data) if config.data.palette is None else Palette.load(Path(config.data.palette))
    )
    config, tokens_at = stream_of(factor, config, data, palette)
    network, span_s = train(make_proxy(factor, config), config, factor, tokens_at)
    valid = data.images("valid")
    nats, _ = judge(network, palette.encode(valid[:N_VALID]), layers=False)
    return {
        "factor": name,
        "seed": seed,
        "images": sum(ramped(IMAGES_SEEN, factor.sizes))
        if factor.sizes
        else config.train.total_steps * config.train.batch_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_s": round(span_s, 1),
        "valid_nats": round(nats, 4),
        **(_probed(network, data, palette) if factor.probed else {}),
        "dtype": str(DTYPE).removeprefix("torch."),
    }


def _probed(network: GPT, data: PackedSet, palette: Palette) -> dict[str, Any]:
    """Accuracy of every layer's pooled features on validation images, and the best."""
    counts: dict[Split, int] = {"train": N_PROBED, "valid": N_PROBE_VALID}
    fitted, judged = (
        Labelled(
            judge(network, palette.encode(data.images(split)[:n]), layers=True)[1],
            labels_of(data, split)[:n],
        )
        for split, n in counts.items()
    )
    # What stands for test here is validation again: test is not looked at.
    layers = range(len(network.h) + 1)
    result, _, _ = probe_layers(fitted, judged, judged, layers=layers, strengths=STRENGTHS)
    return {
        "probe_by_layer": [round(score.valid_accuracy, 4) for score in result.by_layer],
        "probe": round(result.valid_accuracy, 4),
    }


def _palette(data: Any) -> Palette:
    """512 colours of the training split, fitted once and kept beside the results of all trials."""
    path = files.cache_folder() / "records-palette-16.npy"
    if not path.is_file():
        Palette.fit(data.images("train"), n_colors=BASE.data.n_colors, seed=0).save(path)
    return Palette.load(path)


def main(arguments: list[str]) -> None:
    """Run the trials named on the command line, one after another."""
    if not arguments:
        print("\n".join(FACTORS))
        return
    torch.set_num_threads(1)
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    done = {(held["factor"], held["seed"]) for held in map(json.loads, lines)}
    for name, seed in zip(arguments[::2], arguments[1::2], strict=True):
        if (name, int(seed)) in done:
            continue
        line = {**run_trial(name, int(seed)), "date": time.strftime("%Y-%m-%d")}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
