"""How many images fit in memory at once, and what to change when they do not."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from igpt import compute
from igpt.config import ModelConfig, RunConfig
from igpt.errors import UserError, is_lack_of_memory
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, activation_bytes, parameter_count
from igpt.train.objectives import loss_sum

# Of a parameter: its float32 weight, gradient and two moments.
STATE_BYTES = 16
# Of the free memory: a CPU's is shared with whatever else runs.
SHARES = {"cpu": 0.5, "cuda": 0.9}
# A trial this large is far above what an allocator keeps back, and the weights' own gradients.
CLEAR_BYTES = 2**28
# Where the formula stays this far below the limit, nothing is tried.
CERTAIN = 0.25
# Fragments, and what a trial of two blocks does not see.
RESERVE = 1.1


def fitting_micro_batch(config: RunConfig, *, n_colors: int, ranks: int, tried: bool = True) -> int:
    """The largest halving of a rank's part of the batch that fits in memory.

    Where a formula leaves no doubt that the whole part fits, or nothing does, it is not tried out.

    Args:
        config: precision, parallel and checkpoint_activations decide; micro_batch does not.
        n_colors: tokens in the vocabulary, K.
        ranks: processes that share the batch.
        tried: whether to measure what an image takes, or trust the formula.
    """
    device, train = compute.default_device(), config.train
    shape = Shape.of_run(config, n_colors)
    micro_batch = -(-train.batch_size // ranks)
    width = 2 if train.precision == "bf16" else 4
    states = STATE_BYTES * parameter_count(config.model, shape)
    if train.parallel == "fsdp":
        states = states // ranks + gathered_bytes(config.model, shape, width=width)
    limit = compute.free_memory_bytes(device) * compute.batch_of(SHARES, device) - states
    guess: float = activation_bytes(
        config.model, shape, recompute=train.checkpoint_activations, width=width
    )
    if micro_batch * guess <= CERTAIN * limit:
        return micro_batch
    if tried and limit > 0:
        guess = image_bytes(config, shape, most=micro_batch, device=device)
    each = RESERVE * guess
    while micro_batch > 1 and micro_batch * each > limit:
        micro_batch = -(-micro_batch // 2)
    return micro_batch


def gathered_bytes(config: ModelConfig, shape: Shape, *, width: int) -> int:
    """What a rank holds of other ranks' parts while a network that is cut up trains (FSDP2).

    Two blocks, as the next one is gathered while one computes; one block's gradients, in the type
    of the products and in float32 for their sum over ranks; and the embeddings and the head.
    """
    D = config.n_embd
    block = 12 * D * D + 2 * D
    rest = 2 * shape.n_colors * D + shape.seq_len * D
    return 2 * block * width + block * (width + 4) + 2 * 4 * rest


def image_bytes(config: RunConfig, shape: Shape, *, most: int, device: torch.device) -> float:
    """Bytes that one image takes in forward and backward pass, measured.

    Networks of one and of two blocks are tried, and the difference taken for every further block:
    so a trial costs little, however deep the network.

    Args:
        config: as it will be trained.
        shape: vocabulary and length.
        most: images a trial takes at most.
        device: where.
    """
    n = 1
    while (one := _trial_bytes(config, shape, 1, n, device)) < CLEAR_BYTES and n < most:
        n = min(most, 2 * n)
    two = _trial_bytes(config, shape, 2, n, device)
    return (one + (config.model.n_layer - 1) * max(0, two - one)) / n


def _trial_bytes(
    config: RunConfig, shape: Shape, n_layer: int, n: int, device: torch.device
) -> int:
    """Bytes that `n` images take in a network of `n_layer` blocks, beside its weights."""
    model = dataclasses.replace(config.model, n_layer=n_layer)
    with torch.device(device):
        network = GPT(
            model, n_colors=shape.n_colors, seq_len=shape.seq_len, objective=shape.objective
        )
        tokens = torch.zeros(n, shape.seq_len, dtype=torch.int64)
        masked = None if shape.objective == "ar" else torch.ones_like(tokens, dtype=torch.bool)
    network.checkpoint_activations = config.train.checkpoint_activations
    for parameter in network.parameters():
        parameter.data.zero_()
        parameter.grad = torch.zeros_like(parameter)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32

    def work() -> None:
        with compute.autocast(device, dtype):
            logits = network(tokens, masked)
        loss_sum(logits, tokens, masked).backward()

    return compute.memory_growth(work, device)


@contextmanager
def saying_what_to_lower(config: RunConfig) -> Iterator[None]:
    """A lack of memory inside becomes one line with the setting to change.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise UserError(_advice(config)) from error


def _advice(config: RunConfig) -> str:
    train = config.train
    ways = []
    if train.micro_batch != "auto" and train.micro_batch > 1:
        ways.append(f"--train.micro-batch {train.micro_batch // 2}")
    if not train.checkpoint_activations:
        ways.append("--train.checkpoint-activations")
    if train.parallel != "fsdp":
        ways.append("--train.parallel fsdp under torchrun")
    ways.append("a smaller --data.image-size or --model")
    return f"out of memory with train.micro_batch {train.micro_batch}: try {', or '.join(ways)}"
