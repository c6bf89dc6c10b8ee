"""The training loop: a list of named steps over one `Trainer`.

The batch of step s is a pure function of (seed, s), and the loss is a sum divided once, so that a
run is the same however it is interrupted, and nearly the same however it is cut over devices.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igpt import compute
from igpt.config import RunConfig
from igpt.errors import Interrupted, UserError
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, train_flops
from igpt.progress import Ticker
from igpt.runs import read_json
from igpt.tokens.batches import Batch, BatchStream
from igpt.tokens.masks import bert_masks
from igpt.train import checkpoint
from igpt.train.distributed import World, is_sharded, sharing
from igpt.train.objectives import loss_count, loss_sum
from igpt.train.optim import Optimizer, clip_gradients, lr_factor_at
from igpt.train.tracking import write_metrics
from igpt.train.validate import validation_nats


@dataclass(kw_only=True)
class Trainer:
    """Everything that a step needs or changes."""

    config: RunConfig
    """Resolved: no `auto` is left in it."""
    folder: Path
    network: GPT
    forward: nn.Module
    """The network, or what wraps it for several devices."""
    loss_sum: Callable[[Tensor, Tensor, Tensor | None], Tensor] = loss_sum
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
    stop_signal: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What `state.json` records beside the step, for checks at resume."""


def is_due(step: int, *, every: int, total: int) -> bool:
    """Whether something done every `every` steps is due after `step` updates; always at the end."""
    return step % every == 0 or step == total


def loss_of(trainer: Trainer, batch: Batch) -> Tensor:
    """Add this batch's gradient to the weights' `.grad`; the batch's mean loss over all ranks.

    Returns:
        () float32, nats per token (BERT: per image's mean masked token).
    """
    train, device = trainer.config.train, trainer.device
    slots = trainer.world.slots(train.batch_size)
    tokens = torch.from_numpy(batch.tokens).to(device, non_blocking=True)  # (B, T)
    masked = None
    if train.objective == "bert":
        masks = bert_masks(
            trainer.config.seed,
            batch.step,
            slots=range(slots.start, slots.stop),
            seq_len=tokens.shape[1],
            mask_prob=train.mask_prob,
        )
        masked = torch.from_numpy(masks).to(device)  # (B, T)
    local = loss_count(train.objective, tokens, masked)
    count = trainer.world.sum(torch.tensor(local, dtype=torch.float64, device=device)).clamp(min=1)
    total = torch.zeros((), device=device)
    assert train.micro_batch != "auto"
    parts = trainer.world.parts(train.batch_size, train.micro_batch)
    for part in parts:
        part_masked = None if masked is None else masked[part]
        with sharing(trainer.forward, due=part is parts[-1]):
            with compute.autocast(device, trainer.dtype):
                logits = trainer.forward(tokens[part], part_masked)
            nats = trainer.loss_sum(logits, tokens[part], part_masked)
            # Gradients are averaged over ranks; the count is over all ranks.
            (nats * (trainer.world.size / count).float()).backward()  # type: ignore[no-untyped-call]
        total += nats.detach()
    return trainer.world.sum(total) / count.float()


def train_step(trainer: Trainer, batch: Batch) -> tuple[float, float]:
    """One update; returns the loss in nats per token and the gradient's norm before clipping.

    Raises:
        UserError: the loss or the gradient is not finite; the weights are as before the step.
    """
    train = trainer.config.train
    trainer.began = trainer.step + 1
    loss = loss_of(trainer, batch)
    norm = clip_gradients(trainer.network.parameters(), train.grad_clip_norm)
    loss_nats, grad_norm = float(loss), float(norm)
    if not (math.isfinite(loss_nats) and math.isfinite(grad_norm)):
        raise UserError(_not_finite(trainer, batch, loss_nats, grad_norm))
    trainer.optimizer.step(lr_factor_at(trainer.step, train, trainer.warmup_steps))
    trainer.step += 1
    return loss_nats, grad_norm


def _not_finite(trainer: Trainer, batch: Batch, loss_nats: float, grad_norm: float) -> str:
    good, _ = checkpoint.newest(trainer.folder)
    return (
        f"loss {loss_nats} and gradient norm {grad_norm} at step {trainer.step + 1} "
        f"(images {', '.join(map(str, batch.ids[:8]))}, ...) are not finite; last good checkpoint: "
        f"{good or 'none'}: lower --train.lr, or --resume with another --seed"
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
        trainer.optimizer.load_tensors({k: v for k, v in tensors.items() if "/" in k})
        state: dict[str, Any] = read_json(path / "state.json")
    else:
        held = checkpoint.load(path)
        checkpoint.load_weights(trainer.network, held.model, where=where)
        trainer.optimizer.load_tensors(held.optimizer)
        state = held.state
    trainer.step = int(state["step"])
    return state


@contextmanager
def _stopping_softly(trainer: Trainer) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # torchrun passes on what the terminal has sent already.
        if trainer.stop_signal is not None and trainer.world.size == 1:
            raise KeyboardInterrupt
        trainer.stop_signal = number

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_steps(trainer: Trainer, ticker: Ticker) -> None:
    """Train from the trainer's step to the last one, logging, validating and saving when due.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint of the last whole step was written.
        UserError: the loss is not finite, or a file cannot be written.
    """
    train = trainer.config.train
    meter = Meter(trainer)
    slots = trainer.world.slots(train.batch_size)
    batches = trainer.stream.prefetch(trainer.step, train.total_steps, slots)
    with _stopping_softly(trainer):
        for batch in batches:
            loss_nats, grad_norm = train_step(trainer, batch)
            step, total = trainer.step, train.total_steps
            meter.add(loss_nats, grad_norm)
            if is_due(step, every=train.log_every, total=total):
                ticker.update(step, total, meter.log())
            if is_due(step, every=train.valid_every, total=total):
                meter.log_validation(validation_nats_of(trainer))
            stopped = trainer.world.largest(trainer.stop_signal or 0)
            if (
                stopped
                or step in train.checkpoint_at
                or is_due(step, every=train.checkpoint_every, total=total)
            ):
                save(trainer)
                meter.restart_clock()
            if stopped and step < total:
                message = f"stopped after step {step}, which is saved: go on with --resume"
                raise Interrupted(message, stopped)


def validation_nats_of(trainer: Trainer) -> float:
    """Loss on the validation images used during training, nats per token."""
    train = trainer.config.train
    nats: float = validation_nats(
        trainer.network,
        trainer.valid_tokens,
        mask_prob=train.mask_prob,
        seed=trainer.config.seed,
        dtype=trainer.dtype,
        world=trainer.world,
    )
    return nats


class Meter:
    """Means since the last log line, and the lines of metrics.jsonl."""

    def __init__(self, trainer: Trainer) -> None:
        config, network = trainer.config, trainer.network
        shape = Shape(
            n_colors=network.n_colors, seq_len=network.seq_len, objective=network.objective
        )
        self._trainer = trainer
        self._flops = train_flops(config.model, shape)
        rate = compute.matrix_rate(trainer.device, trainer.dtype)
        self._limit = rate * trainer.world.size
        self._losses: list[float] = []
        self._grad_norm = 0.0
        self._start_s = time.perf_counter()
        self._paused_steps = 0

    def add(self, loss_nats: float, grad_norm: float) -> None:
        """Take in one step."""
        self._losses.append(loss_nats)
        self._grad_norm = grad_norm

    def restart_clock(self) -> None:
        """Leave what was done besides training out of the speed."""
        self._start_s = time.perf_counter()
        self._paused_steps = len(self._losses)

    def log(self) -> str:
        """Write a line to metrics.jsonl; returns its essence for the terminal."""
        trainer, train = self._trainer, self._trainer.config.train
        timed_steps = max(1, len(self._losses) - self._paused_steps)
        span_s = time.perf_counter() - self._start_s
        images_per_s = timed_steps * train.batch_size / span_s
        mfu = images_per_s * self._flops / self._limit
        loss_nats = sum(self._losses) / len(self._losses)
        line = {
            "step": trainer.step,
            "images": trainer.step * train.batch_size,
            "loss_nats": loss_nats,
            "lr": train.lr * lr_factor_at(trainer.step - 1, train, trainer.warmup_steps),
            "grad_norm": self._grad_norm,
            "images_per_s": images_per_s,
            "tokens_per_s": images_per_s * trainer.network.seq_len,
            "mfu": mfu,
            "memory_bytes": compute.peak_memory_bytes(trainer.device),
        }
        self._write(line)
        self._losses.clear()
        self.restart_clock()
        return (
            f"loss {loss_nats:.4f}  {images_per_s:.0f} images/s  "
            f"{line['tokens_per_s']:,.0f} tokens/s  MFU {mfu:.0%}"
        )

    def log_validation(self, valid_nats: float) -> None:
        """Write a validation line."""
        step = self._trainer.step
        images = step * self._trainer.config.train.batch_size
        self._write({"step": step, "images": images, "valid_nats": valid_nats})
        self.restart_clock()

    def _write(self, line: dict[str, Any]) -> None:
        if self._trainer.world.is_first:
            write_metrics(self._trainer.folder, line)
