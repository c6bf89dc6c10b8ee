"""TARGETS, reliability row 4, for what `igpt prepare` reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.hostile import MOST_BYTES, trials


def test_malformed_input_is_left_out_or_refused_in_one_line(tmp_path: Path) -> None:
    assert trials(30, 0, tmp_path) == []


@pytest.mark.slow
def test_1500_malformed_inputs_in_bounded_memory(capsys: pytest.CaptureFixture[str]) -> None:
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.images.hostile", "1500", "1"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=1800,
        env=os.environ | threads,
    )
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n1500 malformed inputs: {found}")
    assert found["wrong"] == []
    assert found["peak_bytes"] < MOST_BYTES
