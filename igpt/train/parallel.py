"""A network spread over the processes of a job.

Small networks are copied to every rank (DDP). Large ones are cut up (FSDP2): each rank holds its
part of every weight, gradient and moment, and a block is whole only while it computes. Only what
trains imports this: FSDP2 takes half a second to import.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from igpt.model.gpt import GPT
from igpt.train.distributed import World


def copied(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with gradients averaged over ranks (DDP)."""
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def shard(network: GPT, dtype: torch.dtype) -> None:
    """Cut a network up over all ranks (FSDP2), each block gathered when it is needed.

    Blocks are gathered in `dtype`; what the rest holds, and all that is stored, stays float32.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in network.h:
        fully_shard(block, mp_policy=policy)
    fully_shard(network, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


def is_sharded(network: nn.Module) -> bool:
    """Whether each rank holds a part of the network only."""
    return isinstance(network, FSDPModule)


@torch.no_grad()
def whole_weights(network: nn.Module, world: World) -> dict[str, Tensor]:
    """Rank 0: every weight of a network that is cut up, whole, on the CPU; else nothing.

    All ranks must call it. One weight at a time is whole on the device.
    """
    weights = {}
    for name, part in network.state_dict().items():  # cut up again, whatever was gathered last
        assert isinstance(part, DTensor)
        whole = part.full_tensor()
        if world.is_first:
            weights[name] = whole.to("cpu", copy=True)
    return weights


@torch.no_grad()
def keep_own_part(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor's own part into a parameter that may be cut up."""
    if isinstance(parameter, DTensor):
        whole = value.to(parameter.device)
        # No source rank: each one has the whole value and takes its part without a message.
        part = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.copy_(part)
    else:
        parameter.copy_(value)


def sharing(forward: nn.Module, *, due: bool) -> AbstractContextManager[None]:
    """A backward pass that adds gradients over ranks only where `due` (the last micro-batch).

    Sharded networks always do: keeping whole gradients would cost what sharding saves.
    """
    if isinstance(forward, DistributedDataParallel) and not due:
        return forward.no_sync()
    return nullcontext()
