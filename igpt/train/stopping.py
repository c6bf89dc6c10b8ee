"""Ctrl-C and SIGTERM: the run ends after its current step, which is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from igpt.errors import Interrupted, UserError
from igpt.train.resume import save
from igpt.train.trainer import Trainer


@contextmanager
def stopping_softly(trainer: Trainer) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run after the current step; a second one ends it at once.

    Raises:
        Interrupted: the signal also broke the current step; the steps before it are saved.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        # torchrun passes on what the terminal has sent already.
        if trainer.stop_signal is not None and trainer.world.size == 1:
            raise KeyboardInterrupt
        trainer.stop_signal = number

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        # Ctrl-C reaches the processes that compile, too, and fails the step that waits for them.
        if trainer.stop_signal is None or trainer.world.size > 1:
            raise
        raise _cut_off(trainer, trainer.stop_signal) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cut_off(trainer: Trainer, stop_signal: int) -> Interrupted:
    """Save the last whole step, if there is one, and say so."""
    if trainer.step == 0:
        return Interrupted("stopped before the first step: start over with --resume", stop_signal)
    save(trainer)
    message = f"stopped after step {trainer.step}, which is saved: go on with --resume"
    return Interrupted(message, stop_signal)
