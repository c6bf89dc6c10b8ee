"""Ctrl-C and SIGTERM: the run ends after its current step, which is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from igpt.train.trainer import Trainer


@contextmanager
def stopping_softly(trainer: Trainer) -> Iterator[None]:
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
