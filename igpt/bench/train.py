"""The training step: forward, backward, clipping and update, in each number type.

All take the same tokens and make the same update: AdamW, fused, gradients clipped at norm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt import compute
from igpt.bench import measure
from igpt.bench.peers import Peer, open_peer
from igpt.config import ModelConfig, TrainConfig
from igpt.errors import UserError
from igpt.model.attention import faster_kernel
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, train_flops
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer, clip_gradients
from igpt.train.trainer import compile_network

N_COLORS = 512
# How far the losses of the same weights may lie apart, nats per token.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}


@dataclass(frozen=True, slots=True)
class Size:
    """Of one row."""

    seq_len: int
    n_embd: int
    n_layer: int
    n_head: int
    batch_size: int

    @property
    def model(self) -> ModelConfig:
        """The network."""
        return ModelConfig(n_layer=self.n_layer, n_head=self.n_head, n_embd=self.n_embd)

    def __str__(self) -> str:
        return (
            f"T={self.seq_len} d={self.n_embd} L={self.n_layer} H={self.n_head} B={self.batch_size}"
        )


SIZES = (Size(256, 128, 8, 8, 32), Size(1024, 128, 8, 8, 8), Size(1024, 256, 12, 8, 4))
QUICK = (Size(256, 64, 2, 4, 8),)
GPU_SIZES = (Size(1024, 512, 24, 8, 32), Size(1024, 1536, 48, 16, 8))


def lively_network(size: Size, device: torch.device) -> GPT:
    """Weights drawn from a fixed seed, with a head that is not zero, so that losses differ."""
    network = GPT(size.model, n_colors=N_COLORS, seq_len=size.seq_len)
    generator = torch.Generator().manual_seed(0)
    network.init_weights(generator)
    with torch.no_grad():
        network.head.weight.normal_(0, size.n_embd**-0.5, generator=generator)
    return network.to(device)


def our_step(
    network: GPT,
    tokens: Tensor,
    dtype: torch.dtype,
    *,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> Callable[[], float]:
    """One training step by our own parts, as `train.loop` makes it; returns the loss."""
    device = tokens.device
    if device.type == "cpu":
        shape = (*tokens.shape, network.config.n_embd)
        causal = network.objective == "ar"
        kernel = faster_kernel(shape, network.config.n_head, causal=causal, dtype=dtype)
        network.attend_by(kernel)
    summed = compile_network(network) if can_compile(device) else loss_sum
    precision: Literal["fp32", "bf16"] = "fp32" if dtype == torch.float32 else "bf16"
    settings = TrainConfig(optimizer=optimizer, precision=precision, warmup_steps=1)
    update = Optimizer(network, settings)

    def step() -> float:
        with compute.autocast(device, dtype):
            logits = network(tokens)
        loss = summed(logits, tokens, None) / tokens.numel()
        loss.backward()
        clip_gradients(network.parameters(), 1.0)
        update.step(0.01)
        return float(loss.detach())

    return step


def can_compile(device: torch.device) -> bool:
    """Whether training would compile here."""
    return device.type == "cuda" or compute.has_compiler()


def peer_step(peer: Peer, tokens: Tensor, dtype: torch.dtype) -> Callable[[], float]:
    """The same step by a peer."""
    update = torch.optim.AdamW(peer.module.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        with compute.autocast(tokens.device, dtype):
            logits = peer.logits(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.module.parameters(), 1.0)
        update.step()
        update.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def bench_size(
    size: Size,
    peers: Sequence[str],
    dtype: torch.dtype,
    *,
    repeats: int = measure.REPEATS,
    at_most_s: float = float("inf"),
) -> list[measure.Row]:
    """Rows of one size in one number type.

    Raises:
        UserError: a peer with our weights has another loss, so that times would not compare.
    """
    device = compute.default_device()
    network = lively_network(size, device)
    generator = torch.Generator().manual_seed(1)
    shape = (size.batch_size, size.seq_len)
    tokens = torch.randint(N_COLORS, shape, generator=generator).to(device)
    opened = {name: open_peer(name, network) for name in peers}
    works: dict[str, Callable[[], float]] = {measure.OURS: our_step(network, tokens, dtype)}
    works |= {name: peer_step(peer, tokens, dtype) for name, peer in opened.items()}
    first = {name: work() for name, work in works.items()}
    for name, peer in opened.items():
        gap = abs(first[name] - first[measure.OURS])
        if peer.is_ours and not gap <= TOLERANCE[dtype]:
            raise UserError(f"{name}'s loss lies {gap:.1e} from ours at {size}: times mean nothing")
    spans = measure.take_turns(
        works, repeats=repeats, device=device, at_most_s=at_most_s, warm=True
    )
    flops = size.batch_size * train_flops(
        size.model, Shape(n_colors=N_COLORS, seq_len=size.seq_len, objective="ar")
    )
    return measure.rows_of(
        f"train step {size}",
        spans,
        limit_s=flops / measure.matrix_rate(device, dtype),
        limit="matrix rate",
        note=str(dtype).removeprefix("torch."),
    )


def bench_train(
    peers: Sequence[str], *, quick: bool, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """All rows in the number type that training chooses here, and the first in float32 as well."""
    device = compute.default_device()
    chosen = compute.choose_dtype("auto", device)
    if quick:
        return bench_size(QUICK[0], peers, chosen, at_most_s=6)
    cases = [(size, chosen) for size in SIZES]
    if device.type == "cuda":
        cases = [(size, torch.bfloat16) for size in GPU_SIZES]
    elif chosen != torch.float32:
        cases.append((SIZES[0], torch.float32))
    rows = []
    for size, dtype in cases:
        rows += bench_size(size, peers, dtype, at_most_s=at_most_s)
    return rows
