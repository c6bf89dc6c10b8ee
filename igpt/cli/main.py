"""The command `igpt`: find the command's module, parse its arguments with tyro, run it.

What surrounds a command is here too: its streams, which may be closed, full or old, and signals.
Only the chosen command's module is imported, so `igpt --help` loads neither torch nor scikit-learn.
"""

import codecs
import contextlib
import difflib
import functools
import inspect
import io
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from igpt import __version__
from igpt.errors import Diverged, Elsewhere, Interrupted, Stopped, UserError, missing_extra, refused
from igpt.images.rejects import MAX_BAD, allow
from igpt.system import (
    at_home,
    keep_caches_together,
    limit_cpu,
    refuse_lost_folder,
    refuse_windows,
    take_no_code_from_here,
)

# Command: what it does. Each is the function of its name in `igpt.cli.<name>`.
COMMANDS = {
    "demo": "the model that ships at work, in a minute; --train: the whole story from nothing",
    "cache": "what the cache folder holds, by kind and size; clear it",
    "info": "versions, device and measured rates; or what a run, model, data set or palette is",
    "prepare": "decode, resize and pack any images",
    "palette": "fit a colour palette and report its error",
    "pretrain": "train a model on images without labels",
    "evaluate": "nats per token and bits per pixel on a split",
    "probe": "linear probe of every layer",
    "finetune": "train all weights with a class head",
    "lowdata": "classify with a few labels a class",
    "embed": "features of images, to a file",
    "classify": "name what is on images, by the saved probe",
    "rank": "images by how much they surprise a model, odd ones first, with heat maps",
    "sample": "draw new images",
    "complete": "draw the missing part of images",
    "report": "one self-contained HTML page about a run",
    "bench": "our speed beside other projects', on the same inputs",
    "convert": "rewrite a model in another format: transformers, the authors' TensorFlow",
    "push": "put a model on the Hugging Face Hub, with a card",
    "pull": "fetch a model from the Hugging Face Hub",
    "serve": "a web page to play with a model",
}

# Commands whose processes share one job under `torchrun`; every other one would be done many times.
SHARED = ("prepare", "pretrain", "evaluate", "probe", "finetune", "embed", "sample")
# Commands that compute with a network, and so have `--device`.
COMPUTING = (
    *("demo", "info", "pretrain", "evaluate", "probe", "finetune", "lowdata", "embed", "classify"),
    *("rank", "sample", "complete", "bench", "push", "serve"),
)
# Commands that prepare DATA where it is no packed set; `--max-bad` of the others is their own.
PREPARING = ("palette", "pretrain", "evaluate", "probe", "finetune", "lowdata")
EXAMPLES = (
    "igpt demo",
    "igpt complete cifar10-32 cat.jpg",
    "igpt pretrain photos runs/mine --recipe demo --plan",
)
EXIT_USER_ERROR = 2
SILENT_S = 10.0
FIRST_SPEAKS_S = 2.0
# Signs in a line of help at least: tyro never comes to an end where its frame alone takes them all.
NARROWEST = 40
# Threads of libgomp spin for milliseconds while they wait for each other. Where another program
# wants a core too, that made training five to ten times slower; where none does, sleeping at once
# costs a third. So many turns keep most of both (RESULTS.md).
SPIN_COUNT = "10000"

# A quoted ~, alone or within a word as NAME=~/a, WEIGHT:none:~/b: no shell has looked at it.
_WORDS_HOME = re.compile(r"(?:^|(?<=[=:]))~[^/=:]*")


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, 2 for what the user can mend, 128 + N after signal N."""
    prepare_streams()
    with stopped_by_signals():
        leave(_status_of(argv))


def _status_of(argv: list[str] | None) -> int:
    args = sys.argv[1:] if argv is None else argv
    debug = "--debug" in args
    args = [_WORDS_HOME.sub(lambda word: str(at_home(word[0])), a) for a in args if a != "--debug"]
    warnings.showwarning = _show_warning
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is imported
    try:
        _run(args)
        sys.stdout.flush()
    except UserError as error:
        if debug:
            raise
        return _failed(error)
    except Interrupted as stop:
        from igpt.progress import say

        say(f"igpt: {stop}")
        return 128 + stop.signal_number
    except KeyboardInterrupt as stop:
        print("igpt: stopped", file=sys.stderr)
        return 128 + getattr(stop, "signal_number", signal.SIGINT)
    except BrokenPipeError:
        to_nowhere(1)  # the reader of a pipe went away
        return 128 + signal.SIGPIPE
    except Exception as error:
        line = missing_extra(error) or refused(error)
        if debug or line is None:
            raise
        return _failed(line)
    return 0


def _show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
    """A warning as one line, without the place in the code that raised it."""
    print(f"igpt: warning: {message}", file=sys.stderr)


def _failed(error: UserError) -> int:
    from igpt.progress import n_ranks, own_rank

    if own_rank() > 0:
        if isinstance(error, Diverged | Elsewhere):
            return EXIT_USER_ERROR  # where it began says it
        if _ended_within(FIRST_SPEAKS_S):  # what the first one met too ends the job until then
            return EXIT_USER_ERROR
    if n_ranks() > 1:
        from igpt.train.distributed import is_first_to_fail

        if not is_first_to_fail():
            return EXIT_USER_ERROR
    rank = f"rank {own_rank()}: " if own_rank() > 0 else ""
    print(f"igpt: error: {rank}{' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _ended_within(seconds: float) -> bool:
    """Whether a signal came, as torchrun sends it, in so much time."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return True
    return False


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return
    if args[0] == "--version":
        print(f"igpt {__version__}")
        return
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "igpt --help lists the commands"
        raise UserError(f"unknown command {name}: {hint}")
    if name not in SHARED and "--help" not in rest and "-h" not in rest:
        _refuse_ranks(name)
    refuse_windows()
    refuse_lost_folder()
    take_no_code_from_here()
    keep_caches_together()
    limit_cpu(None)
    function = getattr(import_module(f"igpt.cli.{name}"), name)
    for option, commands in ((_DEVICE, COMPUTING), (_MAX_BAD, PREPARING)):
        if name in commands:
            function = option.added_to(function)
    parse(function, rest, prog=f"igpt {name}")()


@dataclass(frozen=True, slots=True)
class _Option:
    """One more option of every command of a kind, and what is done with it first."""

    name: str
    kind: Any
    default: Any
    use: Callable[[Any], None]
    help: str

    def added_to(self, function: Callable[..., None]) -> Callable[..., None]:
        """The command with this option too."""

        @functools.wraps(function)
        def with_option(*args: Any, **kwargs: Any) -> None:
            self.use(kwargs.pop(self.name, self.default))
            function(*args, **kwargs)

        signature = inspect.signature(function)
        kind = inspect.Parameter.KEYWORD_ONLY
        added = inspect.Parameter(self.name, kind, default=self.default, annotation=self.kind)
        parameters = [*signature.parameters.values(), added]
        with_option.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_option.__annotations__ = {**function.__annotations__, self.name: self.kind}
        heading = "    Args:\n"
        before, _, after = (function.__doc__ or "").partition(heading)
        del with_option.__wrapped__  # tyro would read that one's types
        with_option.__doc__ = f"{before}{heading}        {self.name}: {self.help}\n{after}"
        return with_option


def _use_device(device: str | None) -> None:
    if device is not None or "igpt.compute" in sys.modules:
        from igpt.compute import use_device

        use_device(device)


_DEVICE = _Option(
    name="device",
    kind=str | None,
    default=None,
    use=_use_device,
    help="where to compute: cpu, cuda, cuda:1, mps, xpu; none: the first accelerator.",
)
_MAX_BAD = _Option(
    name="max_bad",
    kind=float,
    default=MAX_BAD,
    use=allow,
    help="share of the images of DATA that may be left out before it stops.",
)


def _refuse_ranks(name: str) -> None:
    """End each of the processes that `torchrun` started for a command that only one can do.

    Raises:
        UserError: on the first of them; the others leave without a word.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not os.environ.get("RANK") or not size.isdigit() or int(size) < 2:
        return
    if os.environ["RANK"] != "0":
        _ended_within(SILENT_S)  # torchrun ends this process as soon as the first one has spoken
        sys.exit(EXIT_USER_ERROR)
    raise UserError(
        f"igpt {name} is done by one process and torchrun started {size}: call it without "
        f"torchrun; {', '.join(SHARED)} share their work"
    )


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: igpt COMMAND ARGS [--options]",
            "",
            "Generative pre-training from pixels (Image GPT).",
            "",
            *lines,
            "",
            "to begin with:",
            *(f"  {line}" for line in EXAMPLES),
            "",
            "`igpt COMMAND --help` shows a command's arguments; --debug shows tracebacks.",
        ]
    )


def parse(function: Callable[..., None], args: list[str], *, prog: str) -> Callable[[], None]:
    """The command bound to its arguments, not yet run.

    A command that trains gets its starting values from `--recipe`, or from the run that it
    resumes; single options override them.

    Raises:
        UserError: an argument is missing, unknown or of a wrong kind.
    """
    import tyro

    bound: Callable[..., Any] = _deferred(function)
    # Options that no recipe sets need only be turned away from their default.
    markers: tuple[Any, ...] = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    if "config" in (parameters := inspect.signature(function).parameters):
        bound, markers = _with_settings(function, bound, args, prog), ()
    elif "finetune" in parameters and "--resume" in args:
        bound, markers = _with_those_of_run(function, bound, args, prog), ()
    call, unknown = _parsed(bound, args, prog, markers)
    if unknown:
        raise UserError(_unknown_argument(bound, unknown[0], prog, markers))
    return call


def _with_settings(
    function: Callable[..., None], bound: Callable[..., Any], args: list[str], prog: str
) -> Callable[..., Any]:
    """The command with the settings that its options are laid over."""
    from igpt.config import RunConfig, unchecked
    from igpt.train.folder import starting_config

    plain = functools.partial(bound, config=RunConfig())
    with unchecked():
        given = _read_once(function, plain, args, prog)
    if given is None:
        return plain
    config = starting_config(
        Path(given["run"]),
        resume=given["resume"],
        recipe=given["config"].recipe,
    )
    return functools.partial(bound, config=config)


def _with_those_of_run(
    function: Callable[..., None], bound: Callable[..., Any], args: list[str], prog: str
) -> Callable[..., Any]:
    """`igpt finetune` with the options of the run that it goes on with."""
    from igpt.jobs.finetune import starting

    given = _read_once(function, bound, args, prog)
    if given is None or given.get("run") is None:
        return bound
    asked, image_size = starting(at_home(given["run"]), resume=True)
    return functools.partial(
        bound,
        finetune=asked.config,
        rates=asked.rates,
        scratch=asked.scratch,
        seeds=asked.seeds,
        image_size=image_size,
    )


def _read_once(
    function: Callable[..., None], bound: Callable[..., Any], args: list[str], prog: str
) -> dict[str, Any] | None:
    """The arguments over the plain defaults, to know which RUN and recipe they are of; None where
    only help is wanted.
    """
    words = [word for word in args if word not in ("-h", "--help")]
    try:
        call, _ = _parsed(bound, words, prog, ())
    except UserError:
        if len(words) == len(args):
            raise
        return None
    return inspect.signature(function).bind(*call.args, **call.keywords).arguments


def _parsed(
    bound: Callable[..., Any], args: list[str], prog: str, markers: tuple[Any, ...]
) -> tuple["functools.partial[None]", list[str]]:
    """What tyro makes of the arguments, and those that it does not know.

    Raises:
        UserError: an argument is missing, or of a wrong kind.
    """
    import tyro

    complaint, shown = io.StringIO(), _Held()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(shown):
            call, unknown = tyro.cli(
                bound, args=args, prog=prog, return_unknown_args=True, config=markers
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(f"{_in_one_line(complaint.getvalue())}: see {prog} --help") from None
        print(_wrapped_help(shown.getvalue()), end="", flush=True)
        raise
    return call, unknown


class _Held(io.StringIO):
    """Help on its way to standard output, in the colours that are for it."""

    def isatty(self) -> bool:
        """Whether standard output is a terminal."""
        return bool(sys.__stdout__ and sys.__stdout__.isatty())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of standard output: frames are drawn in what it has."""
        return (sys.__stdout__ and sys.__stdout__.encoding) or "utf-8"


def _wrapped_help(text: str) -> str:
    """Help whose lines outside of the frames fit the terminal too: tyro breaks the others."""
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(
            line,
            width,
            break_on_hyphens=False,
            subsequent_indent="    " if line.startswith("usage:") else "",
        )
        if line[:1].isalpha()
        else line
        for line in text.split("\n")
    )


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same signature for tyro to read, but calling it only binds the arguments."""
    # tyro would print the line breaks within the description of an argument.
    function.__doc__ = re.sub(r"\n {12}(?=\S)", " ", function.__doc__ or "")

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _in_one_line(box: str) -> str:
    """The message in tyro's framed error, without frame, title, and help below the rule."""
    if "Missing from" in box:  # below, each with its help, indented once more
        asked = re.split(r"^[│| ] [─-]{8,}", box, flags=re.M)[0]
        found = re.findall(r"(?:^[│| ] {5}\S.*\n)+", asked, re.M)  # long ones take several lines
        names = ["".join(line.strip("│| ") for line in name.splitlines()) for name in found]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    message: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│|╭╮╰╯+ ")
        is_rule = set(text) <= {"─", "-"}
        if is_rule and message:
            break
        if not is_rule:
            message.append(text)
    return re.sub(r"\s+", " ", " ".join(message)).strip(" .:") or "wrong arguments"


def _unknown_argument(
    function: Callable[..., Any], argument: str, prog: str, markers: tuple[Any, ...]
) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}: see {prog} --help"
    known = set(re.findall(r"--[a-z][a-z0-9.-]*", _help_of(function, markers)))
    near = difflib.get_close_matches(argument.split("=")[0], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see {prog} --help"
    return f"unknown option {argument}: {hint}"


def _help_of(function: Callable[..., Any], markers: tuple[Any, ...]) -> str:
    import tyro

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(function, args=["--help"], config=markers)
    return text.getvalue()


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
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
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
