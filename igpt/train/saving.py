"""From a run's moment to a checkpoint and back.

A checkpoint is written by a thread of its own from a copy of the tensors, so that training waits
for the copy only.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from igpt import files
from igpt.errors import Diverged
from igpt.files import read_json, write_error
from igpt.progress import say
from igpt.train import checkpoint
from igpt.train.optim import level_steps
from igpt.train.parallel import is_sharded
from igpt.train.tensors import load_weights
from igpt.train.trainer import Trainer

# What is written sooner than it is worth losing is waited for, though not on a disk that hangs.
SMALL_BYTES = 2**25
SMALL_WAIT_S = 1.0
# Of a parameter: its float32 weight and two moments; its weight alone.
CHECKPOINT_BYTES, MODEL_BYTES = 12, 4


def check_room(folder: Path, n_parameters: int, *, n_kept: int) -> None:
    """Find out before the first step whether the disk has room for the checkpoints of a run.

    Args:
        folder: of the run.
        n_parameters: of the network.
        n_kept: checkpoints that stay at a time; one more is written before the oldest goes.

    Raises:
        UserError: it has not.
    """
    n_bytes = n_parameters * (CHECKPOINT_BYTES * (n_kept + 1) + MODEL_BYTES)
    files.check_room(folder, n_bytes, f"{n_kept + 1} checkpoints and the model")


class Saver:
    """Writes the checkpoints of a run, one after another, behind the training's back.

    Small ones are waited for: with short steps a run would otherwise be far past one, when it is
    killed, before that stands.

    Networks that are cut up over ranks are written by all of them together, while training waits.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self) -> None:
        """Begin to write a checkpoint of this moment; old ones go once it stands.

        Raises:
            Diverged: a weight is not finite.
            UserError: the checkpoint before this one could not be written.
        """
        self.wait()
        trainer = self._trainer
        _check_finite(trainer)
        path = checkpoint.folder_of(trainer.folder, trainer.step)
        state = {"step": trainer.step, **trainer.facts}
        if trainer.memory:
            state["memory"] = dict(trainer.memory)
        if trainer.owes_validation:
            state["owes_validation"] = True
        if is_sharded(trainer.network):
            from igpt.train import sharded

            tensors = {**trainer.network.state_dict(), **trainer.optimizer.tensors()}
            sharded.save(path, tensors, state, trainer.world)
            self._prune(trainer.step)
        elif trainer.world.is_first:
            tensors_by_file = {
                "model": _copied(trainer.network.state_dict()),
                "optimizer": _copied(trainer.optimizer.tensors()),
            }
            arguments = (path, tensors_by_file, state)
            self._thread = Thread(target=self._write, args=arguments, name="checkpoint")
            self._thread.start()
            n_bytes = sum(t.nbytes for own in tensors_by_file.values() for t in own.values())
            if n_bytes < SMALL_BYTES:
                self._thread.join(SMALL_WAIT_S)

    def wait(self) -> None:
        """Return when what was begun is written.

        Raises:
            UserError: it could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self, path: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> None:
        try:
            checkpoint.save(path, **tensors, state=state)
            self._prune(state["step"])
        except BaseException as error:  # raised where it is waited for
            self._error = error

    def _prune(self, step: int) -> None:
        trainer, train = self._trainer, self._trainer.config.train
        if trainer.world.is_first:
            level = level_steps(train, trainer.warmup_steps)
            keep_at = {*train.checkpoint_at, *trainer.keeps, level}
            prune(trainer.folder, upto=step, keep_last=train.keep_last, keep_at=keep_at)


def save(trainer: Trainer) -> None:
    """Write a checkpoint of this moment, and return when it stands."""
    saver = Saver(trainer)
    saver.save()
    saver.wait()


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, on the CPU."""
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


@torch.no_grad()
def _check_finite(trainer: Trainer) -> None:
    """Refuse to save, and so to use, weights that are no numbers."""
    own = (p.to_local() if isinstance(p, DTensor) else p for p in trainer.network.parameters())
    bad = sum(not bool(torch.isfinite(part.sum())) for part in own)
    if trainer.world.largest(bad):
        raise Diverged(
            f"weights are not finite after step {trainer.step}: start another run folder with a "
            f"lower --{trainer.options}.lr"
        )


def restore(trainer: Trainer, path: Path, *, checked: bool = False) -> dict[str, Any]:
    """Go back to the moment of an intact checkpoint, and return its `state.json`.

    Args:
        trainer: of the run.
        path: of the checkpoint.
        checked: its hashes were compared just now.
    """
    where = str(path)
    if is_sharded(trainer.network):
        from igpt.train import sharded

        own = dict(trainer.network.named_parameters())
        tensors = sharded.read(path, own, with_optimizer=True)
        weights = {name: tensor for name, tensor in tensors.items() if "/" not in name}
        moments = {name: tensor for name, tensor in tensors.items() if "/" in name}
        state: dict[str, Any] = read_json(path / "state.json")
    else:
        held = checkpoint.load(path, checked=checked)
        weights, moments, state = held.model, held.optimizer, held.state
    load_weights(trainer.network, weights, where=where)
    trainer.step = int(state["step"])
    if trainer.step:  # before the first step an optimiser has no state
        trainer.optimizer.load_tensors(moments, where=where)
    trainer.memory = dict(state.get("memory", {}))
    trainer.owes_validation = bool(state.get("owes_validation", False))
    return state


def say_what_differs(trainer: Trainer, state: dict[str, Any]) -> None:
    """Name each thing that exact resume depends on and that is not as it was at a checkpoint."""
    for key, value in trainer.facts.items():
        if key in state and state[key] != value:
            say(
                f"warning: {key} {state[key]} -> {value}: "
                "the weights will not be bit for bit the same"
            )


def prune(run: Path, *, upto: int, keep_last: int, keep_at: Collection[int]) -> None:
    """Delete old checkpoints: of those up to a step, all but the newest and those at chosen steps.

    Args:
        run: its folder.
        upto: the step just saved; whatever is newer is not this call's to judge.
        keep_last: how many of the newest stay.
        keep_at: steps that stay.
    """
    old = [(step, path) for step, path in checkpoint.all_steps(run) if step <= upto]
    for step, path in old[keep_last:]:
        if step not in keep_at:
            shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path, reason: str) -> Path:
    """Rename a checkpoint so that it is not looked at again: `step-0001000.damaged`; its new place.

    Raises:
        UserError: the folder cannot be written.
    """
    numbered = (f"{path.name}.{reason}" + (f"-{n}" if n else "") for n in range(1000))
    target = next(p for p in map(path.with_name, numbered) if not p.exists())
    try:
        path.rename(target)
    except OSError as error:
        raise write_error(target, error) from error
    return target


def clear_parts(run: Path) -> None:
    """Remove what saves that were killed have left half written; the run must be held."""
    for part in (run / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)
