"""Commands on six simulated systems: each does its work, or says in one line what is missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
TINY = """--data.image-size 8 --data.n-colors 16 --model.n-layer 2 --model.n-head 2
    --model.n-embd 16 --train.total-steps 2 --train.batch-size 4 --train.warmup-steps 1
    --train.micro-batch auto --train.valid-images 4""".split()
COMMANDS = {
    "info": ["info"],
    "prepare": ["prepare", "photos", "packed", "--image-size", "8", "--workers", "2"],
    "pretrain": ["pretrain", "packed", "run", *TINY],
    "evaluate": ["evaluate", "run", "packed"],
    "probe": ["probe", "run", "packed", "--no-raw-pixels"],
    "lowdata": ["lowdata", "run", "packed", "--labels", "4"],
    "embed": ["embed", "run", "cat.png", "--out", "features.npz"],
    "rank": ["rank", "run", "cat.png", "dog.png"],
    "sample": ["sample", "run", "--n", "2"],
    "complete": ["complete", "run", "cat.png", "--n", "1"],
}
# On systems that differ from another one in a part only, the commands that this part is met by.
ON = {
    "sandbox": ("info", "prepare", "pretrain", "probe", "embed", "sample"),
    "nocompiler": ("info", "prepare", "pretrain", "embed", "sample"),
    "wsl": ("info", "prepare", "pretrain", "embed", "sample"),
    "windows": ("info",),
}
GIB = 2**30
BROKEN = 'echo "g++: fatal error: cannot execute cc1plus" >&2; exit 1'
# Apple's compiler has no OpenMP; without optimisation the sampler is built in a few seconds.
APPLES = """for word; do
  case "$word" in -fopenmp) echo "clang: error: unsupported option '-fopenmp'" >&2; exit 1;; esac
done
exec /usr/bin/g++ "$@" -O0"""


def compiler(folder, script):
    """A folder for the PATH that holds this compiler alone."""
    folder.mkdir()
    for name in ("g++", "clang++", "c++"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def settings(system, place):
    """The variables of a process on that system."""
    bare = {"PATH": str(place / "empty"), "TMPDIR": str(place / "tmp"), "LANG": "C"}
    if system == "macos":
        tools = compiler(place / "bin", APPLES)
        return {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(place / "home")}
    if system == "nocompiler":
        return {"PATH": compiler(place / "bin", BROKEN) + ":/bin", "HOME": str(place / "home")}
    if system == "slim":
        group = place / "fake" / "sys" / "fs" / "cgroup"
        group.mkdir(parents=True)
        for name, text in {
            "memory.max": str(2 * GIB),
            "memory.current": str(2 * GIB - 4096),
            "memory.stat": f"inactive_file {19 * GIB // 10}\nactive_file 0\n",
            "cpu.max": "100000 100000",
        }.items():
            (group / name).write_text(text)
        own = place / "fake" / "proc" / "self" / "cgroup"
        own.parent.mkdir(parents=True)
        own.write_text("0::/\n")
        return {**bare, "FAKE_ROOT": str(place / "fake")}
    if system == "sandbox":
        return {**bare, "HOME": "/home/sbx_user"}
    if system == "base":
        return {**bare, "HOME": str(place / "home"), "FIVE_LINES": "1"}
    return {**bare, "HOME": str(place / "home")}


@pytest.fixture(scope="session")  # of a module, it is made anew when tests are dealt out in turn
def ended(tmp_path_factory):
    """How the commands ended on a system; they run once, in one process."""
    known = {}

    def of(system):
        commands = {name: COMMANDS[name] for name in ON.get(system, COMMANDS)}
        if system == "base":
            commands = {**COMMANDS, **{f"needs {extra}": words for extra, words in NEEDS.items()}}
        if system in known:
            return known[system]
        place = tmp_path_factory.mktemp(system)
        for name in ("home", "tmp", "empty", "site", "photos/cats", "photos/dogs"):
            (place / name).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(60):
            image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            image.save(place / "photos" / ("cats", "dogs")[i % 2] / f"{i}.png")
        for name in ("cat", "dog"):
            image.save(place / f"{name}.png")
        (place / "site" / "sitecustomize.py").write_text(
            f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
            f"import systems; sys.path.pop(0); systems.pretend({system!r})\n"
        )
        (place / "commands.json").write_text(json.dumps(commands))
        environment = {
            "PYTHONPATH": f"{place / 'site'}:{HERE.parent.parent}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **settings(system, place),
        }
        done = subprocess.run(
            [sys.executable, str(HERE / "runner.py"), "commands.json", "found.json"],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        known[system] = json.loads((place / "found.json").read_text())
        return known[system]

    return of


SYSTEMS = ("macos", "slim", "sandbox", "nocompiler", "wsl", "base")


def on(system, *more):
    """A trial on a system: those on one system run in one process of pytest."""
    return pytest.param(system, *more, marks=pytest.mark.xdist_group(system))


@pytest.mark.parametrize(
    ("system", "command"),
    [on(system, name) for system in SYSTEMS for name in ON.get(system, COMMANDS)],
)
def test_every_command_works_on_every_system(system, command, ended):
    found = ended(system)[command]
    assert found["status"] == 0, found["err"]
    assert "Traceback" not in found["err"]


SAID = [
    ("macos", "info", "out", "sampler in C++     not built yet"),
    ("macos", "pretrain", "err", "training without compilation"),
    ("nocompiler", "pretrain", "err", "fatal error: cannot execute cc1plus"),
    ("nocompiler", "sample", "err", "drawing takes several times as long: the C++ compiler: g++"),
    ("base", "sample", "err", "no C++ compiler is found: install g++ or set CXX"),
    ("slim", "info", "err", "no home folder"),
    ("slim", "info", "err", "IGPT_CACHE names another"),
    ("sandbox", "info", "err", "IGPT_CACHE names another"),
    ("sandbox", "prepare", "err", "gives no semaphores"),
    ("wsl", "prepare", "err", "has no locks"),
]


@pytest.mark.parametrize(("system", "command", "stream", "words"), [on(*said) for said in SAID])
def test_what_is_missing_is_said(system, command, stream, words, ended):
    assert words in ended(system)[command][stream]


@pytest.mark.xdist_group("base")
def test_the_base_install_gives_features_in_python(ended):
    assert ended("base")["python"]["out"].startswith("(1, ")


NEEDS = {
    "parquet": ["embed", "cifar10-small", "cat.png", "--out", "a.parquet"],
    "onnx": ["convert", "cifar10-small", "a.onnx", "--to", "onnx"],
    "web": ["serve", "cifar10-small", "--port", "0"],
    "tracking": ["pretrain", "photos", "r", *TINY, "--train.track", "tensorboard"],
    "hub": ["pull", "someone/thing", "there"],
}


@pytest.mark.parametrize("extra", NEEDS)
@pytest.mark.xdist_group("base")
def test_what_needs_an_extra_names_it(extra, ended):
    found = ended("base")[f"needs {extra}"]
    assert found["status"] == 2, found["err"]
    assert f"pip install 'igpt[{extra}]'" in found["err"] and "Traceback" not in found["err"]
    assert len([line for line in found["err"].splitlines() if "igpt: error" in line]) == 1


def test_windows_itself_is_refused_in_one_line(ended):
    found = ended("windows")["info"]
    assert found["status"] == 2
    assert found["err"] == (
        "igpt: error: igpt runs on Linux and macOS: on Windows, install and call it within WSL\n"
    )
