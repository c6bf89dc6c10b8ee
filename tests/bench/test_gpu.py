"""`benchmarks/gpu.sh` with its smallest sizes, on a CPU, with nothing installed but torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from igpt.bench import gpu
from igpt.errors import UserError

ROOT = Path(__file__).parent.parent.parent
# A PyTorch image has torch and numpy; these stand for all that it lacks.
MISSING = ("transformers", "safetensors", "tyro", "rich", "sklearn", "PIL", "huggingface_hub")


def test_parts_cover_training_sampling_and_growth():
    parts = gpu.parts_of(gpu.WHOLE, ["transformers", "sketch"])
    assert {"train S", "train L", "sample S", "sample S whole"} <= parts.keys()
    assert {"evaluate S", "features S", "probe S", "finetune S"} <= parts.keys()
    assert sum(name.startswith("growth") for name in parts) == 4


def test_a_part_that_fails_is_named_and_the_rest_is_kept(tmp_path, monkeypatch, capsys):
    def fail():
        raise UserError("no memory")

    parts = {"bad": fail, "good": lambda: gpu.measure.rows_of("work", {"igpt": [1.0]})}
    monkeypatch.setattr(gpu, "parts_of", lambda sizes, peers: parts)
    rows = gpu.run(gpu.TINY, tmp_path / "out.json", 60)
    assert [row.row for row in rows] == ["work"]
    assert "bad: left out: no memory" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 1


def test_no_part_begins_when_time_is_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "parts_of", lambda sizes, peers: {"late": lambda: 1 / 0})
    assert gpu.run(gpu.TINY, tmp_path / "out.json", -1) == []
    assert "late: left out" in capsys.readouterr().err


def test_what_it_imports_is_torch_and_numpy():
    """Else nothing would be measured on the machine that it is for."""
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING!r})); import igpt.bench.gpu"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [(), MISSING], ids=["all installed", "torch alone"])
def test_the_script_runs_whole_without_network_or_packages(tmp_path, missing):
    blocker = tmp_path / "site" / "sitecustomize.py"
    blocker.parent.mkdir()
    blocker.write_text(
        "import sys, socket\n"
        f"sys.modules.update(dict.fromkeys({missing!r}))\n"
        "import importlib.util as u; real = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name in {missing!r} else real(name, *a)\n"
        "socket.socket.connect = lambda *a: sys.exit('network used')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{blocker.parent}:{ROOT}",
        "PYTHON": sys.executable,
        "IGPT_CACHE": str(tmp_path / "cache"),
    }
    out = tmp_path / "gpu.json"
    script = ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(
        [script, out, "--tiny"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    expected = {"sketch"} if missing else {"sketch", "transformers"}
    assert {row["peer"] for row in rows} - {""} == expected
    assert "left out:" not in done.stderr, done.stderr
    assert len([row for row in rows if row["memory_bytes"]]) == 2
    judged = {"evaluate", "features"} if missing else {"evaluate", "features", "large", "finetune"}
    assert judged <= {row["row"].split()[0] for row in rows}
