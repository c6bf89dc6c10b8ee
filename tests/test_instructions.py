"""The C++ parts for other processors than this one: the same tests, with less of the processor."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from igpt import cpp
from igpt.model import native
from igpt.system import cpu_flags
from tests.model.test_attention import exact_attention, random_case

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


MAIN = """
#include "attention.cpp"
#include <cstdio>
template <class Number> std::vector<Number> read(size_t n) {
    std::vector<Number> data(n);
    if (std::fread(data.data(), sizeof(Number), n, stdin) != n) std::abort();
    return data;
}
template <class Number> void write(const std::vector<Number> &data) {
    std::fwrite(data.data(), sizeof(Number), data.size(), stdout);
}
int main() {
    Shape shape{SHAPE, 1, 1};
    size_t n = shape.batch_size * shape.seq_len * shape.width;
    auto qkv = read<NUMBER>(3 * n), grad = read<NUMBER>(n);
    std::vector<NUMBER> output(n), d_qkv(3 * n);
    std::vector<float> sums(n);
    ATTEND(&shape, qkv.data(), output.data(), sums.data());
    BACKWARD(&shape, grad.data(), qkv.data(), output.data(), sums.data(), d_qkv.data());
    write(output);
    write(d_qkv);
}
"""
ARM = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.mark.slow  # builds for another machine, and emulates it
@pytest.mark.skipif(ARM is None, reason="no compiler for ARM: install g++-aarch64-linux-gnu")
def test_the_decoder_compiles_for_neon(tmp_path):
    part = native.PARTS["decode"]
    command = [ARM, "-std=c++17", *part.flags, "-c", *map(str, part.sources)]
    subprocess.run([*command, "-o", str(tmp_path / "decode.o")], check=True)


@pytest.mark.slow
@pytest.mark.skipif(ARM is None or EMULATOR is None, reason="no emulator: install qemu-user")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(2, 2, 70, 16), (1, 3, 33, 20), (1, 1, 130, 64)])
def test_attention_is_exact_on_neon(tmp_path, shape, dtype, tolerance):
    part = native.PARTS["attention"]
    kind, number = ("float32", "float") if dtype == torch.float32 else ("bfloat16", "uint16_t")
    B, H, T, E = shape
    facts = [f"-DSHAPE={B},{H},{T},{H * E}"]
    facts += [f"-DATTEND=attend_{kind}", f"-DBACKWARD=attend_backward_{kind}", f"-DNUMBER={number}"]
    (tmp_path / "main.cpp").write_text(MAIN)
    command = [ARM, "-std=c++17", *part.flags, *facts, "-static", "-I", str(part.sources[0].parent)]
    program = str(tmp_path / "main")
    subprocess.run([*command, str(tmp_path / "main.cpp"), "-o", program], check=True)

    qkv, weight = random_case(shape, 0, dtype)
    expected = exact_attention(qkv, shape[1], True)
    (exact,) = torch.autograd.grad((expected * weight.to(dtype)).sum(), qkv)
    given = b"".join(
        part.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for part in (qkv, weight.to(dtype))
    )
    told = subprocess.run([EMULATOR, program], input=given, capture_output=True, check=True).stdout
    found = torch.frombuffer(bytearray(told), dtype=dtype)
    assert (found[: weight.numel()] - expected.flatten()).abs().max() < tolerance
    gradient = found[weight.numel() :]
    assert (gradient - exact.flatten()).abs().max() < tolerance * max(1, exact.abs().max())
