"""TARGETS, reliability row 4, for what `igpt prepare` reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.hostile import trials


def test_malformed_input_is_left_out_or_refused_in_one_line(tmp_path: Path) -> None:
    assert trials(28, 0, tmp_path) == []


@pytest.mark.slow
def test_700_malformed_inputs_in_bounded_memory() -> None:
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.images.hostile", "700", "1"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=900,
        env=os.environ | threads,
    )
    assert json.loads(done.stdout) == []
