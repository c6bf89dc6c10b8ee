"""What a step of training needs and changes, as one thing; and how it is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import igpt
from igpt import compute, system
from igpt.config import RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.model import native
from igpt.model.compiling import compile_blocks
from igpt.model.gpt import GPT
from igpt.model.sizes import train_flops
from igpt.streams import stream, torch_seed
from igpt.tokens.batches import BatchStream
from igpt.tokens.tokenizer import Tokenizer
from igpt.train.distributed import World, default_world
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer
from igpt.train.parallel import copied, is_sharded, keep_own_part, shard, whole_weights
from igpt.train.tensors import check_weights

LossSum = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`loss_sum`, or what compiling made of it."""


@dataclass(kw_only=True)
class Trainer:
    """Everything that a step needs or changes.

    A kind of run that is not pre-training gives its own network, `stream` and `loss_of`, and what
    it has to remember in `memory`; the rest of `igpt.train` serves it as it is.
    """

    config: RunConfig
    """Resolved: no `auto` is left in it."""
    folder: Path
    network: nn.Module
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
    flops_per_image: int
    """Of forward and backward pass."""
    tokens_per_image: int
    loss_of: "Callable[[Trainer, Any], Tensor] | None" = None
    """Adds a batch's gradient and gives its mean loss; none: `igpt.train.loop.loss_of`."""
    validate: "Callable[[Trainer], dict[str, float]] | None" = None
    """Figures of the validation images by name; none: the objective's loss."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What a kind of run has to remember, plain values: saved and put back with each checkpoint."""
    keeps: frozenset[int] = frozenset()
    """Steps that are saved and whose checkpoints stay, besides those of the settings."""
    options: str = "train"
    """What the options begin with that a message advises to change."""
    owes_validation: bool = False
    """The run was stopped, and saved, before the figures that were due at this step."""
    is_done: bool = False
    """Nothing is left to do, though steps are: a run may end early."""
    step: int = 0
    """Updates made so far."""
    began: int = 0
    """The step whose images are at hand, counted from 1."""
    moves: int = 0
    """Counts the parts of long work between two steps, so that it is not taken for a stall."""
    draws: bool = False
    """Something else than training is going on, which may take long."""
    stop_signal: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What `state.json` records beside the step, for checks at resume."""


@dataclass(frozen=True, slots=True)
class Look:
    """Something that looks at a run now and then: grids that it draws, a probe of its features."""

    every: int
    """Steps between looks; the last step always has one."""
    take: Callable[[], Mapping[str, Any]]
    """What was found, by name: numbers, lists of them, (H, W, 3) uint8 pictures. All ranks call it
    together; those after the first get nothing."""


def make_network(config: RunConfig, *, n_colors: int, device: str = "cpu") -> GPT:
    """A network whose weights are not drawn yet; on `meta` they take no memory either."""
    with torch.device(device):
        return GPT(
            config.model,
            n_colors=n_colors,
            seq_len=config.data.seq_len,
            objective=config.train.objective,
        )


def make_trainer(
    config: RunConfig,
    data: PackedSet,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    initial: Mapping[str, Tensor] | None = None,
    batches: BatchStream | None = None,
    world: World | None = None,
) -> Trainer:
    """A trainer at step 0.

    Args:
        config: resolved.
        data: packed images at the configured size.
        folder: of the run.
        tokenizer: colours to tokens.
        initial: weights to start from, by name; none draws them from the seed.
        batches: what it trains on; none: the training images of `data`.
        world: this process's place among the ranks; none: as torchrun made it.
    """
    world = world or default_world()
    device = compute.default_device()
    _check_machine(config.train, world, device)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    sharded = world.size > 1 and config.train.parallel == "fsdp"
    network = make_network(config, n_colors=tokenizer.n_colors, device="meta" if sharded else "cpu")
    network.checkpoint_activations = config.train.checkpoint_activations
    # Runs of 0.1 stored no kernel: they had the usual one.
    network.attend_by(None if config.train.attention == "auto" else config.train.attention)
    summed = compile_network(network) if config.train.compile == "blocks" else loss_sum
    if sharded:
        shard(network, dtype)
        network.to_empty(device=device)
    network.to(device)
    _set_weights(network, config.seed, initial, zero_outputs=config.train.zero_outputs)
    return Trainer(
        config=config,
        folder=folder,
        network=network,
        forward=copied(network, device) if world.size > 1 and not sharded else network,
        loss_sum=summed,
        optimizer=Optimizer(network, config.train),
        stream=batches or _training_stream(config, data, tokenizer),
        valid_tokens=_validation_tokens(config, data, tokenizer),
        device=device,
        dtype=dtype,
        warmup_steps=config.train.warmup_steps or 0,
        world=world,
        flops_per_image=train_flops(config.model, network.shape),
        tokens_per_image=network.seq_len,
        facts=exactness_facts(config, device, dtype, world),
    )


def _check_machine(train: TrainConfig, world: World, device: torch.device) -> None:
    if world.size > train.batch_size:
        raise UserError(
            f"train.batch_size {train.batch_size} is less than the {world.size} processes of "
            "torchrun: each needs an image, so start fewer or raise it"
        )
    if train.compile == "blocks" and (problem := compute.compile_problem(device)):
        raise UserError(
            f"train.compile blocks is not possible here: {problem}; or add --train.compile off"
        )


def _set_weights(
    network: GPT, seed: int, initial: Mapping[str, Tensor] | None, *, zero_outputs: bool
) -> None:
    """Give a network, cut up or not, `initial` or else the weights that the seed draws."""
    if initial is not None:
        check_weights(network, initial, where="--init-from")
    generator = torch.Generator().manual_seed(torch_seed(seed, "init"))
    for name, parameter in network.named_parameters():
        if initial is not None:
            keep_own_part(parameter, initial[name])
            continue
        whole = torch.empty(parameter.shape)
        network.fill_initial(name, whole, generator)
        if zero_outputs and name.endswith("c_proj.weight"):
            whole.zero_()
        keep_own_part(parameter, whole)


def whole_network(trainer: Trainer) -> GPT | None:
    """The network as rank 0 can use it alone, none on other ranks; all ranks must call this.

    Where it is cut up, rank 0 gets a copy: on its own device where that has room, else on the CPU.
    """
    own = trainer.network
    assert isinstance(own, GPT)
    if not is_sharded(own):
        return own if trainer.world.is_first else None
    weights = whole_weights(own, trainer.world)
    if not weights:
        return None
    network = make_network(trainer.config, n_colors=own.n_colors, device="meta")
    network.load_state_dict(weights, assign=True)
    n_bytes = sum(weight.nbytes for weight in weights.values())
    has_room = compute.free_memory_bytes(trainer.device) > 2 * n_bytes
    return network.to(trainer.device) if has_room else network


def _training_stream(config: RunConfig, data: PackedSet, tokenizer: Tokenizer) -> BatchStream:
    return BatchStream(
        data.trained_images(fold_validation=config.data.fold_validation),
        None,
        tokenizer,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
    )


def _validation_tokens(config: RunConfig, data: PackedSet, tokenizer: Tokenizer) -> np.ndarray:
    """(N, T) int64: a seeded choice of validation images, the same throughout a run."""
    n = data.n("valid")
    if not n:
        return np.empty((0, config.data.seq_len), np.int64)
    order = stream(config.seed, "valid-choice").permutation(n)
    chosen = np.sort(order[: config.train.valid_images])
    return tokenizer.encode(data.images("valid")[chosen])


def exactness_facts(
    config: RunConfig, device: torch.device, dtype: torch.dtype, world: World
) -> dict[str, Any]:
    """What must be equal for a resumed run to be bit for bit the uninterrupted one."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "igpt": igpt.__version__,
    }
    if device.type == "cpu" and dtype == torch.bfloat16:  # then attention is our own C++
        library = native.library("attention")
        facts["native"] = "none" if library is None else Path(library._name).stem
    if config.data.augment == "imagenet":  # originals are decoded while it trains
        from PIL import features as pillow  # what trains on tokens alone needs no Pillow

        facts["jpeg"] = pillow.version("libjpeg_turbo") or pillow.version("jpg")
    return facts


def _processor(device: torch.device) -> str:
    """The model of what computes, and on a CPU the instructions that PyTorch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{system.processor_name()}, {torch.backends.cpu.get_cpu_capability()}"


def compile_network(network: GPT) -> LossSum:
    """Compile the blocks, each for itself, in place; returns the loss, compiled too.

    The embeddings stay out: compiled, their gradient would differ from run to run.
    """
    compile_blocks(network)
    compiled: LossSum = torch.compile(loss_sum, dynamic=False)
    return compiled
