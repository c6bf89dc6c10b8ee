"""The C++ parts for other processors than this one: the same tests, with less of the processor."""

import os
import subprocess
import sys

import pytest

from igpt import cpp
from igpt.system import cpu_flags

NEEDED = {"avx2": "avx2", "avx512": "avx512f"}


@pytest.mark.slow  # each builds all C++ for its set, and compiles blocks
@pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", NEEDED)
def test_networks_are_exact_on_each_set_of_instructions(name):
    if NEEDED[name] not in cpu_flags():
        pytest.skip(f"this processor has no {name}")
    with_less = os.environ | {"IGPT_CPU": name}
    code = (
        "import sys; from igpt.system import limit_cpu; limit_cpu(None); import pytest, torch; "
        f"assert torch.backends.cpu.get_cpu_capability() == {name.upper()!r}; "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', *sys.argv[1:]]))"
    )
    tests = ["tests/model/test_attention.py", "tests/model/test_decoder.py"]
    tests += ["tests/model/test_gpt.py", "tests/train/test_objectives.py"]
    command = [sys.executable, "-c", code, *tests]
    done = subprocess.run(command, env=with_less, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
