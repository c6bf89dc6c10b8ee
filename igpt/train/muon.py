"""Muon (Jordan et al. 2024) with its products batched over equal shapes, in a type of one's choice.

PyTorch's own makes them matrix by matrix and always in bfloat16, which a processor that does not
multiply it takes seventeen times as long for.

Where each rank holds some rows of every matrix (FSDP2), a stack is exchanged so that each rank has
some matrices whole, turns those, and is exchanged back: no product is made twice.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

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
