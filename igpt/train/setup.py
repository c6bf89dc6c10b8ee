"""From a configuration, images and a folder to a `Trainer` that is ready to step."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import igpt
from igpt import compute, system
from igpt.config import RunConfig
from igpt.errors import UserError
from igpt.files import read_json, write_json
from igpt.images.packed.read import PackedSet
from igpt.model.attention import faster_kernel
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, parameter_count
from igpt.progress import say
from igpt.streams import stream, torch_seed
from igpt.tokens.batches import BatchStream
from igpt.tokens.palette import Palette
from igpt.tokens.raw import RawTokens
from igpt.tokens.tokenizer import Tokenizer
from igpt.train import checkpoint
from igpt.train.compiling import compile_network
from igpt.train.distributed import (
    World,
    copied,
    default_world,
    is_sharded,
    keep_own_part,
    shard,
    whole_weights,
)
from igpt.train.feeding import Ingredient, epoch_images, fitted_palette, images_of
from igpt.train.memory import STATE_BYTES, fitting_micro_batch
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer, warmup_steps_of
from igpt.train.trainer import Trainer


def read_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The resolved configuration of a run folder, and the facts recorded beside it.

    Raises:
        UserError: there is no run, or its config.json cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no run (config.json is missing): check the path")
    document = read_json(path)
    if not isinstance(document, dict) or "facts" not in document:
        raise UserError(f"{path} is not the config.json of a run: check the path")
    facts = document.pop("facts")
    return RunConfig.from_dict(document, where=str(path)), facts


def create_run(
    config: RunConfig,
    data: PackedSet,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    mixed: Sequence[Ingredient] = (),
) -> RunConfig:
    """Start a run folder: resolve every `auto`, write config.json and palette.npy.

    Args:
        config: as asked for.
        data: packed images at the configured size.
        folder: to start; must be new or empty.
        tokenizer: of the model whose weights the run starts from; none makes one.
        mixed: what is mixed into `data`.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    if (folder / "config.json").exists():
        raise UserError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another folder"
        )
    others = [p.name for p in folder.iterdir() if p.name != "lock"] if folder.is_dir() else []
    if others:
        raise UserError(f"{folder} is not empty ({others[0]}, ...): choose another folder")
    ingredients = (Ingredient(packed=data, augment=config.data.augment), *mixed)
    tokenizer = tokenizer or _make_tokenizer(config, ingredients)
    own = dataclasses.replace(config.data, valid_fraction=data.valid_fraction)
    config = dataclasses.replace(config, data=own)
    n_images = epoch_images(config, ingredients)
    config = resolve(config, n_images=n_images, n_colors=tokenizer.n_colors)
    if isinstance(tokenizer, Palette):
        tokenizer.save(folder / "palette.npy")
    facts = facts_of(data, tokenizer)
    if mixed:
        facts["mixed"] = [other.facts() for other in mixed]
    write_json(folder / "config.json", {**config.to_dict(), "facts": facts})
    return config


def store_config(config: RunConfig, folder: Path) -> None:
    """Write a resumed run's configuration in place of the stored one; the facts stay."""
    _, facts = read_run(folder)
    write_json(folder / "config.json", {**config.to_dict(), "facts": facts})


def _make_tokenizer(config: RunConfig, ingredients: Sequence[Ingredient]) -> Tokenizer:
    if config.data.tokens == "raw":
        return RawTokens()
    if config.data.palette is not None:
        return Palette.load(Path(config.data.palette))
    return fitted_palette(config, ingredients)


def tokenizer_of_run(folder: Path, config: RunConfig) -> Tokenizer:
    """The tokeniser that a run was started with."""
    return RawTokens() if config.data.tokens == "raw" else Palette.load(folder / "palette.npy")


def facts_of(data: PackedSet, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is recorded of data, versions and command, so that a figure can be traced."""
    return {
        "data": data.source,
        "data_digest": data.digest,
        "palette_digest": tokenizer.digest,
        "command": shlex.join(["igpt", *sys.argv[1:]]),
        "igpt": igpt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {system.cores()} cores",
    }


def resolve(config: RunConfig, *, n_images: int, n_colors: int, tried: bool = True) -> RunConfig:
    """The configuration without any `auto`, as it is stored and obeyed from then on.

    Args:
        config: as asked for.
        n_images: of an epoch.
        n_colors: tokens in the vocabulary, K.
        tried: whether the memory that an image takes may be measured by a trial.
    """
    device = compute.default_device()
    train = config.train
    dtype = compute.choose_dtype(train.precision, device)
    problem = None if train.compile == "off" else compute.compile_problem(device)
    compiles = train.compile != "off" and problem is None
    if problem and train.compile == "blocks":
        raise UserError(f"train.compile blocks is not possible here: {problem}; or use auto")
    if problem:
        say(f"training without compilation: {problem}")
    train = dataclasses.replace(
        train,
        precision=compute.name_of(dtype),
        compile="blocks" if compiles else "off",
        warmup_steps=warmup_steps_of(train, n_images),
    )
    shape = Shape(n_colors=n_colors, seq_len=config.data.seq_len, objective=train.objective)
    if train.parallel == "auto":
        states = STATE_BYTES * parameter_count(config.model, shape)
        large = states > 0.25 * compute.free_memory_bytes(device) and train.optimizer == "adamw"
        train = dataclasses.replace(train, parallel="fsdp" if large else "ddp")
    config = dataclasses.replace(config, train=train)
    if train.micro_batch == "auto":
        micro_batch = fitting_micro_batch(
            config, n_colors=n_colors, ranks=default_world().size, tried=tried
        )
        train = dataclasses.replace(train, micro_batch=micro_batch)
    if tried and train.attention == "auto" and device.type == "cpu":
        assert train.micro_batch != "auto"
        kernel = faster_kernel(
            (train.micro_batch, config.data.seq_len, config.model.n_embd),
            config.model.n_head,
            causal=train.objective == "ar",
            dtype=dtype,
        )
        train = dataclasses.replace(train, attention=kernel)
    return dataclasses.replace(config, train=train)


def make_network(config: RunConfig, *, n_colors: int, device: str = "cpu") -> GPT:
    """A network whose weights are not drawn yet; on `meta` they take no memory either."""
    with torch.device(device):
        return GPT(
            config.model,
            n_colors=n_colors,
            seq_len=config.data.seq_len,
            objective=config.train.objective,
        )


def _set_weights(
    network: GPT, seed: int, initial: Mapping[str, Tensor] | None, *, zero_outputs: bool
) -> None:
    """Give a network, cut up or not, `initial` or else the weights that the seed draws."""
    if initial is not None:
        checkpoint.check_weights(network, initial, where="--init-from")
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


def _check_world(config: RunConfig, world: World) -> None:
    train = config.train
    if world.size > train.batch_size:
        raise UserError(
            f"train.batch_size {train.batch_size} is less than the {world.size} processes of "
            "torchrun: each needs an image, so start fewer or raise it"
        )
    if world.size > 1 and train.parallel == "fsdp" and train.optimizer == "muon":
        raise UserError(
            "train.optimizer muon needs whole matrices, which train.parallel fsdp cuts up: "
            "choose --train.parallel ddp or --train.optimizer adamw"
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
    _check_world(config, world)
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
        facts=exactness_facts(device, world),
    )


def whole_network(trainer: Trainer) -> GPT | None:
    """The network as rank 0 can use it alone, none on other ranks; all ranks must call this.

    Where it is cut up, rank 0 gets a copy: on its own device where that has room, else on the CPU.
    """
    if not is_sharded(trainer.network):
        return trainer.network if trainer.world.is_first else None
    weights = whole_weights(trainer.network, trainer.world)
    if not weights:
        return None
    network = make_network(trainer.config, n_colors=trainer.network.n_colors, device="meta")
    network.load_state_dict(weights, assign=True)
    n_bytes = sum(weight.nbytes for weight in weights.values())
    has_room = compute.free_memory_bytes(trainer.device) > 2 * n_bytes
    return network.to(trainer.device) if has_room else network


def _training_stream(config: RunConfig, data: PackedSet, tokenizer: Tokenizer) -> BatchStream:
    return BatchStream(
        images_of(data, config),
        None,
        tokenizer,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
    )


def _validation_tokens(config: RunConfig, data: PackedSet, tokenizer: Tokenizer) -> np.ndarray:
    """(N, T) int64: a seeded choice of validation images, the same throughout a run."""
    n = data.n("valid")
    order = stream(config.seed, "valid-choice").permutation(n)
    chosen = np.sort(order[: config.train.valid_images])
    return tokenizer.encode(data.images("valid")[chosen])


def exactness_facts(device: torch.device, world: World) -> dict[str, Any]:
    """What must be equal for a resumed run to be bit for bit the uninterrupted one."""
    return {
        "device": device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": world.size,
    }
