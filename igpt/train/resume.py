"""From a run's moment to a checkpoint and back, and what a resumed run may change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from igpt.config import RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.files import read_json
from igpt.images.packed.read import PackedSet
from igpt.progress import say
from igpt.train import checkpoint
from igpt.train.distributed import is_sharded
from igpt.train.feeding import Ingredient
from igpt.train.optim import lr_factor_at
from igpt.train.tracking import drop_metrics_after
from igpt.train.trainer import Trainer

# What may change when a run is resumed; anything else would make it another run.
FREE_AT_RESUME = frozenset(
    f"train.{name}"
    for name in (
        "log_every",
        "valid_every",
        "valid_images",
        "checkpoint_every",
        "checkpoint_at",
        "keep_last",
        "draw_every",
        "track",
        "timeout_s",
    )
)
# These may change too, before the learning rate has begun to fall towards the end.
THE_END = frozenset({"train.total_steps", "train.decay_fraction"})
# These keep the run valid but not bit for bit the same.
INEXACT_AT_RESUME = frozenset(
    f"train.{name}"
    for name in (
        "micro_batch",
        "precision",
        "attention",
        "compile",
        "checkpoint_activations",
        "parallel",
    )
)


def save(trainer: Trainer) -> None:
    """Write a checkpoint of this moment, and delete those that are no longer kept."""
    train, network, world = trainer.config.train, trainer.network, trainer.world
    path = checkpoint.folder_of(trainer.folder, trainer.step)
    state = {"step": trainer.step, **trainer.facts}
    if is_sharded(network):
        from igpt.train import sharded

        tensors = {**network.state_dict(), **trainer.optimizer.tensors()}
        sharded.save(path, tensors, state, world)
    elif world.is_first:
        optimizer = trainer.optimizer.tensors()
        checkpoint.save(path, model=network.state_dict(), optimizer=optimizer, state=state)
    if world.is_first:
        checkpoint.prune(trainer.folder, keep_last=train.keep_last, keep_at=train.checkpoint_at)


def restore(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Go back to the moment of an intact checkpoint, and return its `state.json`."""
    where = str(path)
    if is_sharded(trainer.network):
        from igpt.train import sharded

        own = dict(trainer.network.named_parameters())
        tensors = sharded.read(path, own, with_optimizer=True)
        weights = {name: tensor for name, tensor in tensors.items() if "/" not in name}
        checkpoint.load_weights(trainer.network, weights, where=where)
        moments = {name: tensor for name, tensor in tensors.items() if "/" in name}
        trainer.optimizer.load_tensors(moments, where=where)
        state: dict[str, Any] = read_json(path / "state.json")
    else:
        held = checkpoint.load(path)
        checkpoint.load_weights(trainer.network, held.model, where=where)
        trainer.optimizer.load_tensors(held.optimizer, where=where)
        state = held.state
    trainer.step = int(state["step"])
    return state


def resume(trainer: Trainer) -> None:
    """Go back to the newest intact checkpoint, naming those passed over; none: start at step 0."""
    world, step = trainer.world, 0
    if world.is_first:
        path, rejected = checkpoint.newest(trainer.folder)
        for line in rejected:
            say(f"warning: {line}")
        step = 0 if path is None else checkpoint.step_of(path)
    step = world.from_first(step)
    if step:
        held = restore(trainer, checkpoint.folder_of(trainer.folder, step))
        for key, value in trainer.facts.items():
            if held.get(key) != value:
                say(
                    f"warning: {key} {held.get(key)} -> {value}: "
                    "the weights will not be bit for bit the same"
                )
    if world.is_first:
        drop_metrics_after(trainer.folder, trainer.step)
    say(f"resuming at step {trainer.step} of {trainer.config.train.total_steps}")


def check_same_data(folder: Path, data: PackedSet, mixed: Sequence[Ingredient] = ()) -> None:
    """Refuse to go on with other images than a run was started with, or another mixture of them.

    Raises:
        UserError: the images are not the same.
    """
    facts = read_json(folder / "config.json")["facts"]
    if facts["data_digest"] != data.digest:
        raise UserError(
            f"{folder} was trained on {facts['data']} (digest {facts['data_digest'][:12]}), not on "
            f"{data.source} ({data.digest[:12]}): give the same data, or start another run folder"
        )
    if facts.get("mixed", []) != [other.facts() for other in mixed]:
        raise UserError(
            f"{folder} was started with another --mix: repeat its options ({facts['command']})"
        )


def steps_done(folder: Path) -> int:
    """Updates behind a run's newest intact checkpoint."""
    path, _ = checkpoint.newest(folder)
    return 0 if path is None else checkpoint.step_of(path)


def check_resumable(stored: RunConfig, asked: RunConfig, *, step: int) -> None:
    """Refuse a changed configuration that would make it another run; warn where bits may differ.

    Where every step made so far would have had the same learning rate, the end may still move: a
    run of schedule `linear` chooses its last step late.

    Args:
        stored: the run's.
        asked: now.
        step: updates made so far.

    Raises:
        UserError: names each changed key.
    """
    changes = _differences(stored.to_dict(), asked.to_dict())
    free = FREE_AT_RESUME | INEXACT_AT_RESUME
    if _is_level(stored.train, step) and _is_level(asked.train, step):
        free |= THE_END
    fatal = [c for c in changes if c[0] not in free]
    if fatal:
        listed = ", ".join(f"{key} {old} -> {new}" for key, old, new in fatal)
        raise UserError(f"--resume cannot change {listed}: drop it, or start another run folder")
    for key, old, new in changes:
        if key in INEXACT_AT_RESUME:
            say(f"warning: {key} {old} -> {new}: the weights will not be bit for bit the same")


def _is_level(train: TrainConfig, step: int) -> bool:
    """Whether the first `step` steps know nothing of the run's end: warm-up, then a constant."""
    if train.schedule != "linear" or train.warmup_steps is None:
        return False
    return step <= train.warmup_steps or lr_factor_at(step - 1, train, train.warmup_steps) == 1


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key, value in old.items():
        if isinstance(value, Mapping):
            found += _differences(value, new[key], f"{prefix}{key}.")
        elif value != new[key]:
            found.append((f"{prefix}{key}", value, new[key]))
    return found
