"""What surrounds a command: its streams, which may be closed, full or old, and its signals."""

import codecs
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TextIO

from igpt.errors import Stopped, UserError

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# For encodings that lack them; what else is lacking is shown by its number.
_PLAIN = {"\u00b1": "+-", "\u00d7": "x", "\u2013": "-", "\u2014": "-", "\u2192": "->"}
_PLAIN |= {"\u2264": "<=", "\u2265": ">=", "\u2026": "...", "\u00b7": "-", "\u2019": "'"}
_ERRORS = "igpt.plain"


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    parts = []
    for sign in error.object[error.start : error.end]:
        number = ord(sign)
        if 0xDC80 <= number <= 0xDCFF:  # a byte of a file's name that is no text
            return bytes([number - 0xDC00]), error.start + 1
        parts.append(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode())
    return "".join(parts), error.end


class Results(io.TextIOWrapper):
    """Standard output: what cannot be written is an error of its own, never a traceback."""

    def write(self, text: str) -> int:
        """Write text."""
        with _said():
            return super().write(text)

    def flush(self) -> None:
        """Hand everything to the system."""
        with _said():
            super().flush()


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot write standard output: {error.strerror}: free some space, or send it elsewhere"
        ) from error


class Remarks(io.TextIOWrapper):
    """Standard error: whoever read it may be gone, or its disk full; the work goes on."""

    def write(self, text: str) -> int:
        """Write text, if that can be done."""
        try:
            return super().write(text)
        except (OSError, ValueError):
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Hand everything to the system, if that can be done."""
        try:
            super().flush()
        except (OSError, ValueError):
            self._let_go()

    def _let_go(self) -> None:
        """Send to nowhere what is still held, and all that follows."""
        to_nowhere(2)


def to_nowhere(number: int) -> None:
    """Let a file descriptor lead to nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def prepare_streams() -> None:
    """Open what is closed, and wrap the process's own output in `Results` and `Remarks`."""
    codecs.register_error(_ERRORS, _plain)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            to_nowhere(number)  # otherwise the next file that is opened would take its place
    is_own = sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__
    if is_own[0] and not isinstance(sys.stdout, Results):
        sys.stdout = sys.__stdout__ = _wrapped(Results, sys.stdout, 1)  # type: ignore[misc]
    if is_own[1] and not isinstance(sys.stderr, Remarks):
        sys.stderr = sys.__stderr__ = _wrapped(Remarks, sys.stderr, 2)  # type: ignore[misc]


def _wrapped(kind: Any, stream: TextIO | None, number: int) -> Any:
    if stream is None:  # it was closed when Python began
        return kind(open(number, "wb"), encoding="utf-8", errors=_ERRORS)
    encoding, lines = stream.encoding, stream.isatty() or number == 2
    inner = stream.detach()  # type: ignore[attr-defined]
    return kind(inner, encoding=encoding, errors=_ERRORS, line_buffering=lines)


def leave(status: int) -> NoReturn:
    """End with a status; what can no longer be written is let go."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError, UserError):
            to_nowhere(number)  # Python would try, and complain, once more
    sys.exit(status)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let each signal that stops a program raise `Stopped` here; the second one ends it at once.

    What was ignored when the program began, as `nohup` has it, stays ignored.
    """
    owner = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a worker that inherited this
            os.kill(os.getpid(), number)
        raise Stopped(number)

    try:
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number, handler in before.items():
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, stop)
    except ValueError:  # not the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) in (stop, signal.SIG_DFL):
                signal.signal(number, handler)
