import pytest
from torch._inductor import codecache, config

from igpt import system
from igpt.model import attention
from igpt.model.compiling import compile_blocks
from tests.strategies import lively_gpt


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of itself
@pytest.mark.parametrize(
    ("flags", "is_built", "spared"),
    [
        ("avx2 avx512f", True, True),
        ("avx2 avx512f", False, None),  # nothing was tried for this processor
        ("avx2 avx512f amx_tile", True, None),
        ("asimd", True, None),
    ],
)
def test_pytorchs_trials_are_spared_where_ours_said_the_same(monkeypatch, flags, is_built, spared):
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(attention, "is_built", lambda: is_built)
    with config.patch({"cpp.vec_isa_ok": None}):
        compile_blocks(lively_gpt(seq_len=9))
        assert config.cpp.vec_isa_ok is spared


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of itself
def test_compiled_headers_are_kept_with_the_compiled_code(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, getattr(codecache, name))  # put back afterwards
    with config.patch({"cpp.vec_isa_ok": None}):
        compile_blocks(lively_gpt(seq_len=9))
    assert str(tmp_path / "headers") == codecache._HEADER_DIR
    assert str(tmp_path / "headers" / "locks") == codecache._HEADER_LOCK_DIR
