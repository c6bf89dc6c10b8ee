"""The wheel that pip builds holds what the package needs, and works where it alone is installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_built_wheel_is_complete_and_runs_by_itself(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(clone)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        held.extractall(tmp_path / "installed")
    tracked = subprocess.run(
        ["git", "ls-files", "igpt"], cwd=clone, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "igpt/py.typed" in names
    assert [name for name in tracked if name not in names] == []
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for argument in (["--help"], ["sample", "--help"]):
        command = [sys.executable, "-P", "-m", "igpt", *argument]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        assert "usage: igpt" in done.stdout
    code = "import igpt; print(igpt.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path / "installed") in done.stdout
