"""What a run says of itself while it goes on: means, speed, memory, time left."""

import time
from typing import Any

from igpt import compute
from igpt.model.sizes import Shape, train_flops
from igpt.train.optim import lr_factor_at
from igpt.train.trackers import Tracker
from igpt.train.trainer import Trainer


class Meter:
    """Means since the last log line, and what the trackers are told.

    Args:
        trainer: of the run.
        trackers: to tell; none on ranks after the first.
    """

    def __init__(self, trainer: Trainer, trackers: list[Tracker]) -> None:
        config, network = trainer.config, trainer.network
        shape = Shape(
            n_colors=network.n_colors, seq_len=network.seq_len, objective=network.objective
        )
        self._trainer = trainer
        self._trackers = trackers
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
        """Write a line of figures; returns its essence for the terminal."""
        trainer, train = self._trainer, self._trainer.config.train
        timed_steps = max(1, len(self._losses) - self._paused_steps)
        span_s = time.perf_counter() - self._start_s
        images_per_s = timed_steps * train.batch_size / span_s
        mfu = images_per_s * self._flops / self._limit
        loss_nats = sum(self._losses) / len(self._losses)
        left_s = (train.total_steps - trainer.step) * train.batch_size / images_per_s
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
            "left_s": left_s,
        }
        self._write(line)
        self._losses.clear()
        self.restart_clock()
        return (
            f"loss {loss_nats:.4f}  {images_per_s:.0f} images/s  "
            f"{line['tokens_per_s']:,.0f} tokens/s  MFU {mfu:.0%}  {countdown(left_s)} left"
        )

    def log_validation(self, valid_nats: float) -> None:
        """Write a validation line."""
        step = self._trainer.step
        images = step * self._trainer.config.train.batch_size
        self._write({"step": step, "images": images, "valid_nats": valid_nats})
        self.restart_clock()

    def log_pictures(self) -> None:
        """Have samples and completions drawn, and show them to the trackers; on all ranks."""
        trainer = self._trainer
        if trainer.draw is not None:
            trainer.draws = True
            for name, picture in trainer.draw().items():
                for tracker in self._trackers:
                    tracker.show(trainer.step, name, picture)
            trainer.draws = False
        self.restart_clock()

    def _write(self, line: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.write(line)


def countdown(span_s: float) -> str:
    """A span of time as a person says it: `40 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    minutes = round(span_s / 60)
    if span_s < 100:
        return f"{span_s:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
