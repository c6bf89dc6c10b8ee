"""The optimisers, AdamW and Muon, and their learning rate (paper §3.4).

Muon (Jordan et al. 2024) is ours: PyTorch's makes its products matrix by matrix and in bfloat16
alone, which a processor that does not multiply it takes seventeen times as long for. Here they are
batched over equal shapes, in a type of one's choice. Where each rank holds some rows of every
matrix (FSDP2), a stack is exchanged so that each has some matrices whole: no product is made twice.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from igpt.config import TrainConfig

# Numbers in one stack of matrices: a few MB, which stay in a cache.
STACK = 2**21


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, state and settings included.

    Args:
        matrices: parameters of two dimensions.
        dtype: of the orthogonalisation's products.
        settings: as `torch.optim.Muon` takes them.
    """

    def __init__(self, matrices: Iterable[Tensor], *, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(matrices, **settings)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            updates: dict[Tensor, Tensor] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    updates[parameter] = self._with_momentum(parameter, group["momentum"])
            for stack in _stacks(updates):
                turn = functools.partial(
                    orthogonal,
                    coefficients=group["ns_coefficients"],
                    n_steps=group["ns_steps"],
                    eps=group["eps"],
                )
                turned = _each_whole([updates[p].to(self._dtype) for p in stack], turn)
                rate = group["lr"] * 0.2 * math.sqrt(max(stack[0].shape))
                for parameter, update in zip(stack, turned, strict=True):
                    own = _own_rows(parameter)
                    own.mul_(1 - group["lr"] * group["weight_decay"])
                    own.add_(update, alpha=-rate)

    def _with_momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)  # as Nesterov's


def _own_rows(tensor: Tensor) -> Tensor:
    """What this rank holds of it: all, or some rows."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _each_whole(matrices: list[Tensor], turn: Callable[[Tensor], Tensor]) -> Tensor:
    """`turn` of matrices of equal shape, whole: (n, rows that this rank holds, columns).

    Args:
        matrices: (rows, columns), all whole or all cut up by rows over the same ranks.
        turn: (m, rows, columns) -> the same shape, each matrix by itself.
    """
    first = matrices[0]
    stack = torch.stack([_own_rows(matrix) for matrix in matrices])
    if not isinstance(first, DTensor):
        return turn(stack)
    shape = torch.Size([len(matrices), *first.shape])
    stride = (first.numel(), first.shape[1], 1)
    mesh = first.device_mesh

    def of_all(own: Tensor, dim: int) -> DTensor:
        return DTensor.from_local(
            own, mesh, [Shard(dim)], run_check=False, shape=shape, stride=stride
        )

    own = of_all(stack, 1).redistribute(placements=[Shard(0)]).to_local()
    turned = turn(own) if len(own) else own
    return of_all(turned.contiguous(), 0).redistribute(placements=[Shard(1)]).to_local()


def _stacks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of parameters of equal shape, in a fixed order."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, equal in by_shape.items():
        ranks = equal[0].device_mesh.size() if isinstance(equal[0], DTensor) else 1
        n = max(1, STACK // shape.numel()) * ranks
        for start in range(0, len(equal), n):
            yield equal[start : start + n]


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], *, n_steps: int, eps: float
) -> Tensor:
    """Roughly the nearest matrices whose singular values are all 1, by Newton-Schulz steps.

    Args:
        matrices: (n, rows, columns), in the type of the products.
        coefficients: of x, x x^T x and (x x^T)^2 x in a step.
        n_steps: steps.
        eps: the least norm that is divided by.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
