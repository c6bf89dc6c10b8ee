"""Work without gradients shared by the processes of a job: each takes its pieces, one gets all."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from igpt.train.distributed import World

ALONE = World()


def in_order(
    n: int, world: World, compute: Callable[[int], Tensor], shape: Callable[[int], Sequence[int]]
) -> Iterator[Tensor]:
    """The results of n pieces of work, on the first process, in order; nothing on the others.

    The processes take turns piece by piece, so that none holds more than one result of each and
    every piece is the same as where one process does them all.

    Args:
        n: pieces, numbered from 0.
        world: the processes; all of them must call this.
        compute: the result of a piece, float32 on the CPU.
        shape: of that result, known without computing it.
    """
    for first in range(0, n, world.size):
        mine = first + world.rank
        own = compute(mine) if mine < n else None
        if not world.is_first:
            if own is not None:
                dist.send(own.contiguous(), 0)
            continue
        assert own is not None
        yield own
        for other in range(1, min(world.size, n - first)):
            received = torch.empty(tuple(shape(first + other)))
            dist.recv(received, other)
            yield received


def gathered(own: np.ndarray, world: World) -> np.ndarray:
    """The rows of all processes end to end, on the first one; on the others their own.

    Args:
        own: (n, ...) of this process, of the same type and row shape on all.
        world: the processes; all of them must call this.
    """
    return np.concatenate(parts) if (parts := collected(own, world)) else own


def collected(own: Any, world: World) -> list[Any]:
    """What each process gives, in their order, on the first one; on the others nothing."""
    parts: list[Any] = [own] * world.size
    if world.size > 1:
        dist.gather_object(own, parts if world.is_first else None)
    return parts if world.is_first else []
