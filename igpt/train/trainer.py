"""What a step of training needs and changes, as one thing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from igpt.config import RunConfig
from igpt.model.gpt import GPT
from igpt.tokens.batches import BatchStream
from igpt.train.compiling import LossSum
from igpt.train.distributed import World
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer


@dataclass(kw_only=True)
class Trainer:
    """Everything that a step needs or changes."""

    config: RunConfig
    """Resolved: no `auto` is left in it."""
    folder: Path
    network: GPT
    forward: nn.Module
    """The network, or what wraps it for several devices."""
    loss_sum: LossSum = loss_sum
    """The objective's, compiled or not."""
    optimizer: Optimizer
    stream: BatchStream
    valid_tokens: np.ndarray
    """(N, T) int64: the validation images used during training."""
    device: torch.device
    dtype: torch.dtype
    """Of the matrix products."""
    warmup_steps: int
    world: World
    step: int = 0
    """Updates made so far."""
    began: int = 0
    """The step whose images are at hand, counted from 1."""
    moves: int = 0
    """Counts the parts of long work between two steps, so that it is not taken for a stall."""
    draws: bool = False
    """Pictures are being drawn, which may take long."""
    stop_signal: int | None = None
    draw: Callable[[], dict[str, np.ndarray]] | None = None
    """Gives pictures of what the network does by now, by name: (H, W, 3) uint8. All ranks must call
    it together; those after the first get none."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What `state.json` records beside the step, for checks at resume."""
