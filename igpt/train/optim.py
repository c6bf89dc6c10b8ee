"""The optimiser and its learning rate (paper §3.4)."""

import math
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from igpt.config import TrainConfig
from igpt.train.muon import Muon


def warmup_steps_of(config: TrainConfig, n_images: int) -> int:
    """Steps of warm-up: as configured, else one epoch but at most 5 % of the run."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    epoch = math.ceil(n_images / config.batch_size)
    return max(1, min(epoch, config.total_steps // 20))


def lr_factor_at(step: int, config: TrainConfig, warmup_steps: int) -> float:
    """The share of the peak learning rate used by step `step` (the first is 0)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    rest = max(1, config.total_steps - warmup_steps)
    done = (step - warmup_steps) / rest
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return min(1.0, (1 - done) / config.decay_fraction)
    return 1.0


def level_steps(config: TrainConfig, warmup_steps: int) -> int:
    """How many of the first updates do not depend on where the run ends.

    They would be the same in a longer run, which can therefore go on from there. Under `linear`
    these are the updates until the rate falls, under `constant` all of them, under `cosine` none.
    """
    if config.schedule == "constant":
        return sys.maxsize
    if config.schedule == "cosine":
        return 0
    rest = config.total_steps - warmup_steps
    steps = warmup_steps + math.ceil((1 - config.decay_fraction) * rest) + 1
    while steps > warmup_steps and lr_factor_at(steps - 1, config, warmup_steps) < 1:
        steps -= 1
    return min(steps, config.total_steps)


# What each optimiser keeps of a parameter.
_STATE: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
}


class Optimizer:
    """AdamW on everything, or Muon on the blocks' matrices and AdamW on the rest.

    Muon's update is scaled to AdamW's usual size, so rates and decay compare.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._names: dict[Tensor, str] = {
            parameter: name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        matrices = [p for p, name in self._names.items() if p.ndim == 2 and _in_block(name)]
        by_muon = set(matrices) if config.optimizer == "muon" else set()
        others = [p for p in self._names if p not in by_muon]
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        groups = [
            {"params": [p for p in others if p.ndim == 2], "weight_decay": config.weight_decay},
            {"params": [p for p in others if p.ndim != 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self._parts.append((adamw, config.lr))
        if by_muon:
            muon = Muon(
                matrices,
                dtype=torch.float32 if config.precision == "fp32" else torch.bfloat16,
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((muon, config.muon_lr))

    def step(self, lr_factor: float) -> None:
        """Update the weights at this share of the peak rates, then clear the gradients."""
        for part, peak in self._parts:
            for group in part.param_groups:
                group["lr"] = peak * lr_factor
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's whole state as named tensors, for a checkpoint."""
        return {f"{name}/{key}": value for name, key, value in self._state()}

    def _state(self) -> Iterator[tuple[str, str, Tensor]]:
        for part, _ in self._parts:
            for parameter, values in part.state.items():
                for key, value in values.items():
                    yield self._names[parameter], key, torch.as_tensor(value)

    def load_tensors(self, tensors: dict[str, Tensor], *, where: str) -> None:
        """Put back what `tensors` gave after at least one step.

        Args:
            tensors: by name.
            where: they are from, for messages.

        Raises:
            UserError: a tensor is missing, extra or of another shape, by name.
        """
        # `benchmarks/gpu.sh` trains where safetensors, which checkpoints need, is not installed.
        from igpt.train.tensors import check_tensors

        check_tensors(self._shapes(), tensors, where=where)
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            name, key = path.rsplit("/", 1)
            by_parameter.setdefault(name, {})[key] = value
        for part, _ in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    part.state[parameter] = {
                        key: value.to(parameter.device).clone()
                        for key, value in by_parameter[self._names[parameter]].items()
                    }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the state, by name."""
        return {
            f"{self._names[parameter]}/{key}": () if key == "step" else tuple(parameter.shape)
            for part, _ in self._parts
            for group in part.param_groups
            for parameter in group["params"]
            for key in _STATE[type(part)]
        }


def _in_block(name: str) -> bool:
    return name.startswith("h.")


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `max_norm`; returns the norm before.

    With `max_norm` 0 the norm is only measured.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
