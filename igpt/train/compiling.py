"""Compilation for training; imports nothing but torch and the network."""

from collections.abc import Callable

import torch
from torch import Tensor

from igpt.model import attention
from igpt.model.gpt import GPT
from igpt.train.objectives import loss_sum

LossSum = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def compile_network(network: GPT) -> LossSum:
    """Compile the blocks, each for itself, in place; returns the loss, compiled too.

    The embeddings stay out: compiled, their gradient would differ from run to run.
    """
    torch.compiler.assume_constant_result(attention.is_built)  # type: ignore[no-untyped-call]
    for block in network.h:
        block.compile(dynamic=False)
    compiled: LossSum = torch.compile(loss_sum, dynamic=False)
    return compiled
