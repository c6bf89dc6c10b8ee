"""Muon (Jordan et al. 2024) with its products batched over equal shapes, in a type of one's choice.

PyTorch's own makes them matrix by matrix and always in bfloat16, which a processor that does not
multiply it takes seventeen times as long for.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

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
                turned = orthogonal(
                    torch.stack([updates[parameter] for parameter in stack]).to(self._dtype),
                    group["ns_coefficients"],
                    n_steps=group["ns_steps"],
                    eps=group["eps"],
                )
                rate = group["lr"] * 0.2 * math.sqrt(max(turned.shape[1:]))
                for parameter, update in zip(stack, turned, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)

    def _with_momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)  # as Nesterov's


def _stacks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of parameters of equal shape, in a fixed order."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, equal in by_shape.items():
        n = max(1, STACK // shape.numel())
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
