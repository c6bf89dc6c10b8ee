"""Started by torchrun, once a rank: seconds of training steps with the batch shared out."""

import sys
from pathlib import Path

import torch

from igpt import compute
from igpt.bench import measure
from igpt.bench.growth import BASE
from igpt.bench.train import N_COLORS, lively_network
from igpt.config import TrainConfig
from igpt.train.distributed import joined
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer, clip_gradients
from igpt.train.parallel import copied


def main() -> None:
    """Write the spans of rank 0 to the named file, separated by spaces."""
    with joined() as world:
        device = compute.default_device()
        dtype = compute.choose_dtype("bf16", device)
        network = lively_network(BASE, device)
        forward = copied(network, device) if world.size > 1 else network
        tokens = torch.randint(
            N_COLORS, (BASE.batch_size, BASE.seq_len), generator=torch.Generator().manual_seed(1)
        )
        own = tokens[world.slots(BASE.batch_size)].to(device)
        optimizer = Optimizer(network, TrainConfig(optimizer="adamw", warmup_steps=1))

        def step() -> None:
            with compute.autocast(device, dtype):
                logits = forward(own)
            loss = loss_sum(logits, own, None) * world.size / tokens.numel()
            loss.backward()
            clip_gradients(network.parameters(), 1.0)
            optimizer.step(0.01)

        spans = measure.take_turns({"": step}, device=device)[""]
        if world.is_first:
            Path(sys.argv[1]).write_text(" ".join(map(str, spans)))


if __name__ == "__main__":
    main()
