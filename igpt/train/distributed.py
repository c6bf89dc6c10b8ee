"""The processes of one job, as `torchrun` starts them; a single process needs no set-up.

Work without gradients is shared out here: each process takes its pieces, one gets all.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from igpt import compute
from igpt.errors import Elsewhere, UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

T = TypeVar("T")
# `Watch` ends a job that stalls; the collectives themselves wait as long as rank 0 prepares data.
COLLECTIVE_TIMEOUT = timedelta(days=2)
STORE_ANSWERS = timedelta(seconds=5)


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

    def parts(self, batch_size: int, micro_batch: int) -> list[slice]:
        """This rank's slots cut into micro-batches, as many on every rank (they wait in each)."""
        own = self.slots(batch_size)
        most = -(-batch_size // self.size)
        n = max(1, -(-most // micro_batch))
        bounds = [(own.stop - own.start) * i // n for i in range(n + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def count(self, local: float, device: torch.device) -> Tensor:
        """What is counted over all ranks, at least 1, on every rank: () float32."""
        counted = torch.tensor(local, dtype=compute.sums_dtype(device), device=device)
        return self.sum(counted).clamp(min=1).float()

    def largest(self, value: int) -> int:
        """The largest of the ranks' values, on every rank."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return int(values)

    def from_first(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        dist.broadcast(values, 0)
        return int(values)

    def told(self, find: Callable[[], T]) -> T:
        """What `find` returns on rank 0, on every rank; they end with it where it fails."""
        if self.size == 1:
            return find()
        found: list[T | None] = [None]
        with self.first_alone():
            if self.is_first:
                found = [find()]
        dist.broadcast_object_list(found, 0)
        return cast(T, found[0])

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the block on rank 0 first, then on the others; they end with it where it fails."""
        if not self.is_first:
            if self.from_first(0):
                raise Elsewhere("the first rank ended: see its message")
            yield
            return
        try:
            yield
        except BaseException:
            self.from_first(1)
            raise
        self.from_first(0)


def is_launched() -> bool:
    """Whether `torchrun` started this process as one of several.

    Raises:
        UserError: the variables that say so are not all there, or are no numbers.
    """
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name) or None  # empty, as containers may have it, is not set
        if value is not None and not value.isdigit():
            raise UserError(f"{name} is {value!r}, not a number: unset it, or start with torchrun")
        numbers[name] = value
    if int(numbers["WORLD_SIZE"] or 1) <= 1:
        return False
    missing = [name for name, value in numbers.items() if value is None]
    if missing or not os.environ.get("MASTER_ADDR"):
        raise UserError(
            f"WORLD_SIZE is {numbers['WORLD_SIZE']}, but {(missing or ['MASTER_ADDR'])[0]} is not "
            "set: start with torchrun, or unset WORLD_SIZE for a single process"
        )
    return True


def attempt() -> str:
    """How often torchrun has started this job again, for the names of what its ranks tell."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def torchruns_store(timeout: timedelta) -> "TCPStore":
    """Another connection to torchrun's store, as each one serves one thread at a time.

    A torchrun that is suspended answers when it goes on; one that is gone, by an error in the end.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    made: TCPStore = dist.TCPStore(  # type: ignore[attr-defined]  # not in every build
        host, port, is_master=False, timeout=timeout
    )
    return made


def is_first_to_fail() -> bool:
    """Whether no other rank has said yet why this job ends; true where nobody can be asked.

    For a process whose rank `is_launched`. However late the ranks meet the same fault, one says it.
    """
    try:
        said = torchruns_store(STORE_ANSWERS).add(f"igpt/failed/{attempt()}", 1)
        return int(said) == 1
    except (dist.DistError, KeyError, ValueError):
        return True


def default_world() -> World:
    """The world of this process, joined already or alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process at once, as where nothing is at stake yet.

    A process that waits for another one to join runs no handler of Python's: where that one died,
    the launcher would wait for half a minute before it killed this one too.
    """
    try:
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def joined() -> Iterator[World]:
    """The world that `torchrun` made, joined for the time of the block; else this process alone.

    Where the process is part of a world already, that one is used and left as it is.
    """
    if dist.is_initialized() or not is_launched():
        yield default_world()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _ended_by_sigterm():
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield default_world()
    dist.barrier()  # a rank that leaves while the first one still draws may be aborted
    # After an error the others may be gone: then only the end of the process lets go.
    dist.destroy_process_group()


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
