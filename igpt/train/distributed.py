"""The processes of one job, as `torchrun` starts them; a single process needs no set-up."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the job's ranks."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def slots(self, batch_size: int) -> slice:
        """The part of a global batch of `batch_size` images that this rank computes."""
        return slice(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def is_launched() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def default_world() -> World:
    """The world of this process, joined already or alone."""
    if torch.distributed.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()
