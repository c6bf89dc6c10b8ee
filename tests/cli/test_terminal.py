"""Streams that are closed, full, gone or old, and every way to be told to stop."""

import errno
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from igpt import progress
from igpt.cli import main as main_module
from igpt.cli.main import COMMANDS, STOPPING, main

IGPT = [sys.executable, "-m", "igpt"]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
# Imports as little as `igpt --version` does, and works until it is told to stop.
WAITING = """
import sys, time
from igpt.cli import main
def work(args):
    try:
        print("begun", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("tidied", file=sys.stderr, flush=True)
main._run = work
main.main(["x"])
"""


def ended(code, *numbers, before=None, again=False):
    """Status and remarks of a program that is sent signals one after another."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, preexec_fn=before
    )
    assert process.stderr.readline() == "begun\n"
    for i, number in enumerate(numbers):
        if i and again:
            assert process.stderr.readline() == "tidied\n"
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize("number", STOPPING)
def test_each_signal_ends_a_command_tidily(number):
    assert ended(WAITING, number) == (128 + number, "tidied\nigpt: stopped\n")


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_one_ends_it_at_once_without_a_traceback(number):
    stubborn = WAITING.replace("main._run", "    " + "    time.sleep(60)\nmain._run")
    status, err = ended(stubborn, number, number, again=True)
    assert status in (-number, 128 + number) and "Traceback" not in err


def test_what_was_ignored_at_the_start_stays_ignored():
    """As nohup does it."""
    assert signal.SIGHUP in STOPPING
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    status, err = ended(WAITING, signal.SIGHUP, signal.SIGTERM, before=ignore)
    assert (status, err) == (143, "tidied\nigpt: stopped\n")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", STOPPING)
def test_every_command_is_told_to_stop_alike(name, number, monkeypatch, capsys):
    """Wherever it is, it ends by the same way; handlers are as before afterwards."""
    before = [signal.getsignal(n) for n in STOPPING]
    monkeypatch.setattr(main_module, "_run", lambda args: signal.raise_signal(number))
    with pytest.raises(SystemExit) as stop:
        main([name])
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == "igpt: stopped\n"
    assert [signal.getsignal(n) for n in STOPPING] == before


def test_in_a_thread_no_handler_is_touched():
    found = []

    def work():
        try:
            main(["--version"])
        except SystemExit as stop:
            found.append(stop.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def shell(line, **environment):
    """Status, output and remarks of a line of the shell, `igpt` in it being this one."""
    done = subprocess.run(
        ["bash", "-c", line.replace("igpt", " ".join(IGPT), 1)],
        capture_output=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_matter(closed):
    assert shell(f"igpt --version {closed}")[0] == 0
    status, out, err = shell(f"igpt bogus {closed}")
    assert status == 2 and out == "" and "Traceback" not in err


@FULL
def test_results_that_cannot_be_written_are_one_line():
    status, _, err = shell("igpt --version > /dev/full")
    assert status == 2
    assert err == (
        "igpt: error: cannot write standard output: No space left on device: free some space, "
        "or send it elsewhere\n"
    )


@FULL
def test_help_that_cannot_be_written_is_no_success():
    status, _, err = shell("igpt cache --help > /dev/full")
    assert status == 2 and err.startswith("igpt: error: cannot write standard output")


@pytest.mark.parametrize("columns", ["1", "5", "0", "-3", "x", ""])
def test_narrow_terminals_get_help_and_errors_too(columns):
    done = subprocess.run(
        [*IGPT, "cache", "--at-most-gb", "x"], capture_output=True, text=True, timeout=30,
        env={**os.environ, "COLUMNS": columns}, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_gone_is_named_before_the_work(tmp_path):
    gone = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; igpt"
    assert shell(f"{gone} --version")[0] == 0
    status, out, err = shell(f"{gone} cache")
    assert (status, out) == (2, "") and "is gone: change to another" in err


@FULL
def test_remarks_that_cannot_be_written_change_nothing():
    assert shell("igpt bogus 2> /dev/full") == (2, "", "")
    assert shell("igpt bogus 2> >(exit)")[0] == 2


def test_the_reader_of_a_pipe_may_go():
    status, out, err = shell("igpt --help | head -n 1; exit ${PIPESTATUS[0]}")
    assert status in (0, 141) and out.startswith("usage") and err == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_encoding_has_a_word_for_everything(encoding):
    code = (
        "from igpt.cli.main import prepare_streams as p; p()\n"
        "import sys; print('1 \\u00b1 2 \\u2192 \\u6f22 \\udcff'); "
        "print('\\u00b1 \\udcff', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("1 ± 2".encode(encoding) if encoding != "ascii" else b"1 +- 2")
    assert done.stdout.endswith(b"\xff\n") and done.stderr.endswith(b"\xff\n")


class Broken:
    """A stream that takes nothing."""

    encoding = "ascii"

    def __init__(self, error):
        self.error = error

    def write(self, _text):
        raise self.error

    flush = isatty = lambda self: False


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), BrokenPipeError(), ValueError("closed"),
     UnicodeEncodeError("ascii", "±", 0, 1, "no")],
)  # fmt: skip
def test_progress_that_cannot_be_shown_is_left_out(monkeypatch, error):
    monkeypatch.setattr(sys, "stderr", Broken(error))
    progress.say("±")
    with progress.ticking("x") as ticker:
        ticker.update(1, 2)


@pytest.mark.parametrize(
    ("environment", "is_terminal", "is_live"),
    [
        ({"FORCE_COLOR": "1", "TERM": "xterm"}, False, False),
        ({"CI": "true"}, False, False),
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, False),
    ],
)
def test_a_bar_is_drawn_on_terminals_that_can_and_nowhere_else(environment, is_terminal, is_live):
    code = (
        "from igpt.progress import ticking\n"
        "with ticking('work') as t:\n    for i in range(3): t.update(i + 1, 3)"
    )
    held = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "CI", "TERM")}
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env={**held, **environment})
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 2**16)
        except OSError:  # how a terminal ends
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert (b"\x1b[" in text) == is_live
    assert is_live or b"work 3/3" in text
