"""The ways to be told to stop: the run ends after its current step, which is saved.

Ctrl-C, SIGTERM (as often as it comes), a closed terminal, and the signals by which batch systems
warn before a job's time is over. What was ignored when the process began, as `nohup` has it, stays
ignored; a second Ctrl-C ends the run at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from igpt.errors import Diverged, Interrupted, UserError
from igpt.train import checkpoint
from igpt.train.saving import Saver
from igpt.train.trainer import Trainer

_STOPS = ("SIGINT", "SIGTERM", "SIGHUP")
# Batch systems send these; elsewhere in the process they may have another use.
_WARNINGS = ("SIGUSR1", "SIGUSR2")


@contextmanager
def stopping_softly(trainer: Trainer, saver: Saver) -> Iterator[None]:
    """Let the signals that ask to stop end the run after the current step.

    Where a signal cannot be taken (in another thread than the main one) or has another use in this
    process, it keeps that.

    Raises:
        Interrupted: the signal also broke the current step; the steps before it are saved.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        # torchrun passes on what the terminal has sent already.
        again = trainer.stop_signal == number == signal.SIGINT
        if again and trainer.world.size == 1:
            raise KeyboardInterrupt
        trainer.stop_signal = number

    before = {number: signal.signal(number, stop) for number in _to_take()}
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        # Ctrl-C reaches the processes that compile, too, and fails the step that waits for them.
        if trainer.stop_signal is None or trainer.world.size > 1:
            raise
        raise _cut_off(trainer, saver, trainer.stop_signal) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _to_take() -> list[int]:
    """The signals that may be taken here."""
    if threading.current_thread() is not threading.main_thread():
        return []
    stops, warnings = (
        {getattr(signal, name) for name in names if hasattr(signal, name)}
        for names in (_STOPS, _WARNINGS)
    )
    free = {n for n in stops if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    return sorted(free | {n for n in warnings if signal.getsignal(n) is signal.SIG_DFL})


def _cut_off(trainer: Trainer, saver: Saver, stop_signal: int) -> Interrupted:
    """Save the last whole step, if there is one, and say so."""
    if trainer.step == 0:
        return Interrupted("stopped before the first step: start over with --resume", stop_signal)
    saver.save()
    saver.wait()
    message = f"stopped after step {trainer.step}, which is saved: go on with --resume"
    return Interrupted(message, stop_signal)


@contextmanager
def naming_the_newest(trainer: Trainer, saver: Saver) -> Iterator[None]:
    """Add to a fault inside, such as a full disk, which checkpoint the run can go on from."""
    try:
        yield
    except BaseException as error:
        # Joined however it ends: who goes on in this process must not meet what is half written.
        with suppress(UserError):  # the first fault is the one to tell
            saver.wait()
        told = isinstance(error, UserError) and not isinstance(error, Diverged)
        if not told or not trainer.world.is_first:
            raise
        good, _ = checkpoint.newest(trainer.folder)
        kept = (
            "nothing is saved yet" if good is None else f"step {checkpoint.step_of(good)} is saved"
        )
        raise UserError(f"{error}; {kept}") from error


def remedy(trainer: Trainer) -> str:
    """What to do where the loss is not finite, and which checkpoint was the last good one."""
    good, _ = checkpoint.newest(trainer.folder)
    seed = "seed" if trainer.options == "train" else f"{trainer.options}.seed"
    return (
        f"; last good checkpoint: {good or 'none'}: start another run folder with a lower "
        f"--{trainer.options}.lr or another --{seed}"
    )
