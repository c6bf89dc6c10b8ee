"""What a trial of `ablate.py` can do to the optimiser and to the stream of images.

Nothing here changes a network's form, so whatever wins can move into the package.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from igpt.config import TrainConfig
from igpt.images.augment import flipped
from igpt.images.packed.read import PackedSet
from igpt.streams import stream
from igpt.tokens.batches import BatchStream
from igpt.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the weights are updated; the defaults are the package's `Optimizer`."""

    split: str = "fused"
    """What Muon takes as one matrix: fused (3 D, D), parts (query, key, value), heads (of each)."""
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Multiples of AdamW's rate for parameters whose name begins so."""
    cautious_decay: float = 0.0
    """Weight decay of Muon's matrices where the update goes the same way; falls with the rate."""
    warm_momentum: bool = False
    """Muon's momentum rises from 0.85 to 0.95 over 30 % of the run and falls in the last 10 %."""
    norm_rows: bool = False
    """NorMuon: each row of Muon's update is divided by its running root mean square."""


class Stepper:
    """AdamW and Muon with a trial's changes."""

    def __init__(self, network: nn.Module, config: TrainConfig, steps: Steps) -> None:
        self._steps, self._config = steps, config
        named = dict(network.named_parameters())
        by_muon = {
            name: p
            for name, p in named.items()
            if config.optimizer == "muon" and p.ndim == 2 and name.startswith("h.")
        }
        n_head = network.config.n_head  # type: ignore[union-attr]
        self._parts = [
            (parent, rows, nn.Parameter(parent.data[rows]))
            for name, parent in by_muon.items()
            for rows in _cuts(name, parent, steps.split, n_head)  # type: ignore[arg-type]
        ]
        self._muon = torch.optim.Muon(
            [part for _, _, part in self._parts],
            lr=config.muon_lr,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        )
        self._squares: dict[Tensor, Tensor] = {
            part: torch.zeros(len(part), 1) for _, _, part in self._parts
        }
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in named.items():
            if name not in by_muon:
                scale = next((s for k, s in steps.rates.items() if name.startswith(k)), 1.0)
                groups.setdefault(scale, []).append(parameter)
        self._scales = list(groups)
        self._adamw = torch.optim.AdamW(
            [{"params": group, "weight_decay": 0.0} for group in groups.values()],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )

    @torch.no_grad()
    def step(self, factor: float, done: float) -> None:
        """Update at this share of the peak rates, `done` of the run being over; clear gradients."""
        for group, scale in zip(self._adamw.param_groups, self._scales, strict=True):
            group["lr"] = self._config.lr * scale * factor
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        for group in self._muon.param_groups:
            group["lr"] = self._config.muon_lr * factor
            if self._steps.warm_momentum:
                up, back = min(1.0, done / 0.3), max(0.0, (done - 0.9) / 0.1)
                group["momentum"] = 0.85 + 0.1 * min(up, 1 - back)
        before = []
        for parent, rows, part in self._parts:
            assert parent.grad is not None
            part.grad = parent.grad[rows]
            before.append(part.detach().clone())
        self._muon.step()
        for (_, _, part), held in zip(self._parts, before, strict=True):
            self._change(part, held, factor)
        for parent, _, _ in self._parts:
            parent.grad = None

    def _change(self, part: Tensor, held: Tensor, factor: float) -> None:
        """What a trial does to Muon's update of `part`, which was `held` before."""
        update = part - held
        if self._steps.norm_rows:
            square = self._squares[part]
            square.lerp_(update.square().mean(1, keepdim=True), 0.05)
            scaled = update / square.sqrt().clamp(min=1e-12)
            # The first update of what a matrix of zeros hides is zero itself.
            update = scaled * (update.norm() / scaled.norm().clamp(min=1e-12))
            part.copy_(held + update)
        if self._steps.cautious_decay:
            # Squared: the decay itself falls with the rate that it is multiplied by.
            strength = self._config.muon_lr * factor**2 * self._steps.cautious_decay
            part.sub_(strength * held * (update * held < 0))


def _cuts(name: str, parameter: Tensor, split: str, n_head: int) -> list[slice]:
    """The rows of each matrix that Muon takes as one."""
    n = len(parameter)
    pieces = 1
    if name.endswith("c_attn.weight"):
        pieces = {"fused": 1, "parts": 3, "heads": 3 * n_head}[split]
    return [slice(n * i // pieces, n * (i + 1) // pieces) for i in range(pieces)]


class PooledStream:
    """Batches of the first `n` training images only, so that a short trial sees them often.

    Args:
        data: packed.
        tokenizer: colours to tokens.
        n: images in the pool.
        batch_size: images a step.
        seed: of their order and mirroring.
        alternate: whether an image is mirrored every other time it comes, in place of by chance.
    """

    def __init__(
        self,
        data: PackedSet,
        tokenizer: Tokenizer,
        *,
        n: int,
        batch_size: int,
        seed: int,
        alternate: bool,
    ) -> None:
        self._images = np.asarray(data.images("train")[:n])
        rows = np.arange(n)[:, None]
        self._order = BatchStream(rows, None, None, batch_size=batch_size, seed=seed)
        self._tokenizer, self._seed, self._alternate = tokenizer, seed, alternate

    def tokens_at(self, step: int) -> np.ndarray:
        """(B, T) int64."""
        ids = self._order.at(step).ids
        draws = stream(self._seed, "pooled", step).random((len(ids), 3))
        if self._alternate:
            epoch = step * len(ids) // len(self._images)
            first = stream(self._seed, "pooled-first").random(len(self._images)) < 0.5
            draws[:, 2] = np.where(first[ids] == (epoch % 2 == 0), 0.0, 1.0)
        return self._tokenizer.encode(flipped(self._images[ids], draws))


def ramped(images: int, sizes: tuple[int, ...]) -> list[int]:
    """The batch size of each step, where each of `sizes` gets an equal share of `images`."""
    share = images / len(sizes)
    return [size for size in sizes for _ in range(math.ceil(share / size))]
