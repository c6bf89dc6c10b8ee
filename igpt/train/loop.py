"""The training loop: a list of named steps over one `Trainer`.

The batch of step s is a pure function of (seed, s), and the loss is a sum divided once, so that a
run is the same however it is interrupted, and nearly the same however it is cut over devices.
What is done besides training (trackers, pictures, a probe) is passed in as plain functions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from igpt import compute
from igpt.errors import Diverged, Interrupted
from igpt.progress import Ticker
from igpt.tokens.batches import Batch
from igpt.tokens.masks import bert_masks
from igpt.train.log import Meter, Tracker
from igpt.train.objectives import loss_count
from igpt.train.optim import clip_gradients, level_steps, lr_factor_at
from igpt.train.parallel import sharing
from igpt.train.saving import Saver
from igpt.train.stopping import Watch, naming_the_newest, remedy, stopping_softly
from igpt.train.trainer import Look, Trainer
from igpt.train.validate import validated


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
    count = trainer.world.count(local, device)
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
            (nats * (trainer.world.size / count)).backward()
        total += nats.detach()
    return trainer.world.sum(total) / count


def train_step(trainer: Trainer, batch: Batch) -> tuple[float, float]:
    """One update; returns the loss in nats per token and the gradient's norm before clipping.

    Raises:
        Diverged: the loss or the gradient is not finite; the weights are as before the step.
    """
    train = trainer.config.train
    trainer.began = trainer.step + 1
    loss = (trainer.loss_of or loss_of)(trainer, batch)
    norm = clip_gradients(trainer.network.parameters(), train.grad_clip_norm)
    loss_nats, grad_norm = float(loss), float(norm)
    if not (math.isfinite(loss_nats) and math.isfinite(grad_norm)):
        raise Diverged(
            f"loss {loss_nats} and gradient norm {grad_norm} at step {trainer.step + 1} "
            f"(images {', '.join(map(str, batch.ids[:8]))}, ...) are not finite"
            f"{remedy(trainer)}"
        )
    trainer.optimizer.step(lr_factor_at(trainer.step, train, trainer.warmup_steps))
    trainer.step += 1
    return loss_nats, grad_norm


def run_steps(
    trainer: Trainer,
    ticker: Ticker,
    *,
    trackers: Sequence[Tracker] = (),
    looks: Sequence[Look] = (),
) -> None:
    """Train from the trainer's step to the last one; log, save, validate and look when due.

    Args:
        trainer: of the run.
        ticker: shows the progress.
        trackers: are told every figure and picture.
        looks: what else is done now and then.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint of the last whole step was written.
        Diverged: the loss is not finite.
        UserError: a file cannot be written, or a rank is lost.
    """
    train, saver = trainer.config.train, Saver(trainer)
    meter = Meter(trainer, trackers)
    slots = trainer.world.slots(train.batch_size)
    total, kept_for_good = train.total_steps, {*train.checkpoint_at}
    kept_for_good.add(level_steps(train, trainer.warmup_steps))
    # Watched inside, so that the signals torchrun sends when a rank is lost do not cut it short.
    with stopping_softly(trainer, saver), Watch(trainer), naming_the_newest(trainer, saver):
        if trainer.owes_validation:
            _validate(trainer, meter)
        if trainer.is_done:
            return
        for batch in trainer.stream.prefetch(trainer.step, total, slots):
            loss_nats, grad_norm = train_step(trainer, batch)
            step = trainer.step
            meter.add(loss_nats, grad_norm)
            if is_due(step, every=train.log_every, total=total):
                ticker.update(step, total, meter.log())
            validates = is_due(step, every=train.valid_every, total=total)
            if stopped := trainer.world.largest(trainer.stop_signal or 0):
                trainer.owes_validation = validates
                saver.save()
                saver.wait()
                raise Interrupted(
                    f"stopped after step {step}, which is saved: go on with --resume", stopped
                )
            if validates:
                _validate(trainer, meter)
            saves = is_due(step, every=train.checkpoint_every, total=total)
            if saves or step in kept_for_good | trainer.keeps or trainer.is_done:
                saver.save()
                meter.restart_clock()
            for look in looks:
                if is_due(step, every=look.every, total=total):
                    _look(trainer, meter, look)
            if trainer.is_done:
                break
        saver.wait()


def _validate(trainer: Trainer, meter: Meter) -> None:
    meter.write_figures(validated(trainer))
    trainer.owes_validation = False


def _look(trainer: Trainer, meter: Meter, look: Look) -> None:
    trainer.draws = True
    meter.write_figures(look.take())
    trainer.draws = False
