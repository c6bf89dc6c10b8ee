"""The ways to be told to stop: the run ends after its current step, which is saved.

Ctrl-C, SIGTERM (as often as it comes), a closed terminal, and the signals by which batch systems
warn before a job's time is over. What was ignored when the process began, as `nohup` has it, stays
ignored; a second Ctrl-C ends the run at once.

A job of several ranks also ends when one of them is lost or stalls, and says which one. PyTorch's
collectives only say that something timed out. So each rank reports to torchrun's store, from a
thread of its own, that it lives and which step it has begun; ranks 0 and 1 listen.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self

import torch.distributed as dist

from igpt.errors import Diverged, Interrupted, UserError
from igpt.progress import say
from igpt.train import checkpoint
from igpt.train.distributed import COLLECTIVE_TIMEOUT, attempt, torchruns_store
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


LOST_AFTER_S = 3.0
"""After another sign that a rank is lost, its silence for this long is enough to name it."""
_DONE = "done"


class Watch:
    """Reports this rank while the block runs, and ends the process if another one fails it.

    Args:
        trainer: of the run; a single rank is not watched.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._world = trainer.world
        self._timeout_s = trainer.config.train.timeout_s
        self._every_s = min(1.0, self._timeout_s / 5)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._reports = [""] * self._world.size
        self._heard_s = [time.monotonic()] * self._world.size
        self._began = [0] * self._world.size
        self._moves = [""] * self._world.size
        self._moved_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._world.size > 1:
            self._store = torchruns_store(COLLECTIVE_TIMEOUT)
            self._store.set(self._key(self._world.rank), "0 0 0")
            self._await_others()
            self._thread.start()
        return self

    def _await_others(self) -> None:
        """Begin together, so that from here on silence means something."""
        end_s = time.monotonic() + self._timeout_s
        keys = [self._key(rank) for rank in range(self._world.size)]
        while missing := [r for r, key in enumerate(keys) if not self._store.check([key])]:
            if time.monotonic() > end_s:
                raise UserError(
                    f"{_named(missing)} did not begin to train within {self._timeout_s:g} s "
                    "(train.timeout_s): the job ends; go on with --resume"
                )
            time.sleep(0.01)
        self._heard_s = [time.monotonic()] * self._world.size
        self._moved_s = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._world.size == 1:
            return
        if isinstance(error, RuntimeError) and (
            "gloo" in str(error) or isinstance(error, dist.DistError)
        ):
            time.sleep(LOST_AFTER_S + 2 * self._every_s)
            if _DONE in self._reports:
                raise SystemExit(2)  # that rank has said why it ended
            raise UserError(self._lost(LOST_AFTER_S) or _unknown(error)) from error
        self._done.set()
        self._thread.join()

    def _key(self, rank: int) -> str:
        return f"igpt/watch/{attempt()}/{self._trainer.folder.name}/{rank}"

    def _run(self) -> None:
        number, woke_s = 0, time.monotonic()
        try:
            while not self._done.wait(self._every_s):
                number += 1
                woke_s = self._forget_pause(woke_s)
                moves = number if self._trainer.draws else self._trainer.moves
                report = f"{number} {self._trainer.began} {moves}"
                self._store.set(self._key(self._world.rank), report)
                if self._world.rank < 2:
                    self._listen()
                    self._judge()
            self._store.set(self._key(self._world.rank), _DONE)
        except dist.DistError:
            _end("torchrun is gone: the job ends; go on with --resume")

    def _forget_pause(self, woke_s: float) -> float:
        """Count no silence while this process itself, or torchrun, was suspended; the time now.

        Args:
            woke_s: when this was last called.
        """
        now_s = time.monotonic()
        pause_s = now_s - woke_s - self._every_s
        if pause_s > LOST_AFTER_S:
            # The others may wake a little later.
            self._heard_s = [now_s] * self._world.size
            self._moved_s = now_s
        return now_s

    def _listen(self) -> None:
        now_s = time.monotonic()
        for rank in range(self._world.size):
            report = self._store.get(self._key(rank)).decode()
            if report != self._reports[rank] or report == _DONE:
                self._reports[rank], self._heard_s[rank] = report, now_s
            _, _, moves = report.partition(" ")
            if moves != self._moves[rank] or report == _DONE:
                self._moves[rank], self._moved_s = moves, now_s
            if moves:
                self._began[rank] = int(moves.split()[0])

    def _judge(self) -> None:
        # Rank 1 speaks only where rank 0 cannot.
        patience_s = self._timeout_s + 5 * self._every_s * self._world.rank
        if self._trainer.stop_signal is not None and (fault := self._lost(LOST_AFTER_S)):
            _end(fault)
        if fault := self._lost(patience_s):
            _end(fault)
        if time.monotonic() - self._moved_s > patience_s:
            # Who is silent as well is the one that stalls, whatever step the others wait in.
            _end(self._lost(LOST_AFTER_S) or self._stalled())

    def _lost(self, silent_s: float) -> str | None:
        now_s = time.monotonic()
        lost = [r for r, heard_s in enumerate(self._heard_s) if now_s - heard_s > silent_s]
        if not lost:
            return None
        return (
            f"{_named(lost)} gave no sign of life for {now_s - self._heard_s[lost[0]]:.0f} s "
            f"at step {self._trainer.began}: the job ends; go on with --resume"
        )

    def _stalled(self) -> str:
        least = min(self._began)
        late = [rank for rank, began in enumerate(self._began) if began == least]
        where = "all ranks stall" if len(late) == self._world.size else f"{_named(late)} stalled"
        return (
            f"{where} after beginning step {least}, for {self._timeout_s:g} s "
            "(train.timeout_s): the job ends; go on with --resume"
        )


def _named(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _unknown(error: BaseException) -> str:
    reason = str(error).splitlines()[0]
    return f"the ranks lost touch ({reason}): the job ends; go on with --resume"


def _end(message: str) -> None:
    """End this process, whatever its main thread waits for; torchrun ends the others."""
    say(f"igpt: error: {message}", from_any_rank=True)
    os._exit(2)
