import errno
import os
import re
import subprocess
import sys

import pytest

from igpt import shipped
from igpt.cli import main as main_module
from igpt.cli.main import COMMANDS, main
from igpt.errors import Interrupted, UserError
from igpt.recipes import RECIPES


def run(args, capsys):
    """Exit status, standard output, standard error of one command, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_help_names_every_command(capsys):
    status, out, _ = run(["--help"], capsys)
    assert status == 0
    for name, text in COMMANDS.items():
        assert name in out
        assert text in out


def test_help_names_every_recipe(capsys):
    _, out, _ = run(["pretrain", "--help"], capsys)
    assert all(name in out for name in RECIPES)


def test_a_description_flows_on_over_the_line_breaks_of_its_docstring(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(["prepare", "--help"], capsys)
    assert "a folder of images (one folder a class, or none)" in out


def test_options_that_no_recipe_sets_can_only_be_turned_from_their_default(capsys):
    _, out, _ = run(["probe", "--help"], capsys)
    assert "--json" in out and "--no-json" not in out
    assert "--no-raw-pixels" in out and "--raw-pixels" not in out
    _, out, _ = run(["pretrain", "--help"], capsys)
    assert "--train.zero-outputs" in out and "--train.no-zero-outputs" in out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["pretian"], "unknown command pretian: did you mean pretrain?"),
        (["zzz"], "unknown command zzz: igpt --help lists the commands"),
        (
            ["pretrain", "a", "b", "--train.lrr", "3"],
            "unknown option --train.lrr: did you mean --train.lr?",
        ),
        (["pretrain", "a", "b", "c"], "unexpected argument 'c': see igpt pretrain --help"),
        (
            ["pretrain", "a", "b", "--train.lr", "x"],
            "Error parsing --train.lr: could not convert string to float: 'x': "
            "see igpt pretrain --help",
        ),
        (["pretrain", "a", "b", "--train.lr", "-1"], "train.lr is -1.0: it must be above 0"),
        (
            ["pretrain", "a", "b", "--model.n-head", "3"],
            "model.n_head 3 does not divide model.n_embd 512: "
            "choose a width that is a multiple of the heads",
        ),
        (
            ["pretrain", "a", "b", "--recipe", "demoo"],
            "there is no recipe 'demoo': did you mean demo?",
        ),
        (
            ["pretrain", "a", "b", "--recipe"],
            "Missing value for argument '--recipe'. Expected 1 values: see igpt pretrain --help",
        ),
        (
            ["serve", "cifar10-small", "--port", "70000"],
            "--port is 70000: choose from 0 to 65535; 0 takes one that is free",
        ),
        (["convert", "a", "."], ". is not empty: choose another place"),
        (["pull", "a/b", "."], ". is not empty: choose another place"),
        (["info", "/no/such/place"], "/no/such/place does not exist: check the path"),
        (
            ["evaluate", "/no/such/place", "cifar10"],
            "/no/such/place is neither a run nor a model folder: check the path, take a model that "
            f"ships ({', '.join(shipped.names()) or 'none in this installation'}), or one on the "
            "Hub by hf:owner/name",
        ),
    ],
)
def test_mistakes_are_one_line_with_what_to_do_and_status_2(args, line, capsys):
    status, out, err = run(args, capsys)
    assert (status, out) == (2, "")
    assert err == f"igpt: error: {line}\n"


@pytest.mark.parametrize("columns", ["40", "200"])
def test_missing_arguments_are_named(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for args, missing in (
        (["pretrain", "a"], "RUN is"),
        (["pretrain"], "DATA and RUN are"),
        (["bench"], "{train,sample,data,probe,start,growth,all} is"),
    ):
        status, _, err = run(args, capsys)
        line = f"igpt: error: {missing} missing: see igpt {args[0]} --help\n"
        assert (status, err) == (2, line)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_the_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    status, out, _ = run([command, "--help"], capsys)
    assert (status, f"igpt {command}" in out) == (0, True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert [line for line in plain.splitlines() if len(line) > 60] == []


def test_debug_shows_the_traceback():
    with pytest.raises(UserError):
        main(["zzz", "--debug"])


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted("saved", 2), 130), (Interrupted("saved", 15), 143), (KeyboardInterrupt(), 130)],
)
def test_signals_give_the_shells_status(error, status, monkeypatch, capsys):
    def stop(args):
        raise error

    monkeypatch.setattr(main_module, "_run", stop)
    assert run(["demo"], capsys)[0] == status


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory: give it more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a"), "/a: File name too long: mend"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files: mend that"),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_one_line(error, words, monkeypatch, capsys):
    def refuse(args):
        raise error

    monkeypatch.setattr(main_module, "_run", refuse)
    status, out, err = run(["demo"], capsys)
    assert (status, out) == (2, "") and words in err and len(err.splitlines()) == 1
    with pytest.raises(type(error)):
        main(["demo", "--debug"])


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("x"), OSError("x")])
def test_faults_of_our_own_keep_their_traceback(error, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr(main_module, "_run", fail)
    with pytest.raises(type(error)):
        main(["demo"])


def test_help_loads_no_heavy_library():
    """TARGETS, row start: torch alone takes seconds to import."""
    code = (
        "import sys\nimport igpt\nassert 'numpy' not in sys.modules\n"
        "from igpt.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'PIL', 'tyro', 'matplotlib', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_without_spinning_long_unless_the_user_says_how(given, found):
    """Too long a spin takes the awaited thread's core on a shared machine; none is slow alone."""
    code = (
        "import os, sys\nfrom igpt.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    others = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**others, **given},
    )
    assert done.stdout.splitlines()[-1] == str(found)


def test_compiled_code_is_kept_beside_the_other_caches(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "own")  # so that it is put back afterwards
    run(["info", "--help"], capsys)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "own"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    run(["info", "--help"], capsys)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in main_module.SHARED])
def test_a_command_of_one_process_is_refused_where_torchrun_started_two(name, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    status, out, err = run([name, "whatever"], capsys)
    assert (status, out) == (2, "")
    assert err.startswith(f"igpt: error: igpt {name} is done by one process and torchrun started 2")
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(main_module, "SILENT_S", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert run([name, "whatever"], capsys) == (2, "", "")


def test_one_process_that_torchrun_started_is_as_good_as_none(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert run(["info"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("igpt.loading", ("torch._dynamo", "torch.distributed.fsdp", "sklearn", "scipy.stats")),
        # Together these take longer than torch itself; the optimiser brings the compiler along.
        ("igpt.jobs.pretrain", ("sklearn", "scipy.stats", "pandas", "matplotlib")),
        ("igpt.cli.sample", ("torch._dynamo", "sklearn", "scipy.stats", "pandas", "matplotlib")),
    ],
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(module, heavy):
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
