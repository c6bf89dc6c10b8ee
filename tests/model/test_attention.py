import copy
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt import compute
from igpt.model import attention, native
from tests.strategies import lively_gpt, random_tokens

needs_compiler = pytest.mark.skipif(native.library("attention") is None, reason="no C++ compiler")


def random_case(shape, seed, dtype=torch.float32):
    """Queries, keys and values side by side, (B, T, 3 D), and weights of the output, (B, T, D)."""
    B, H, T, E = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(B, T, 3 * H * E, generator=generator).to(dtype)
    return qkv.requires_grad_(), torch.randn(B, T, H * E, generator=generator)


def exact_attention(qkv, n_head, causal):
    B, T, width = qkv.shape
    parts = qkv.double().view(B, T, 3, n_head, -1).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in parts)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).reshape(B, T, width // 3)


def both_ways(shape, causal, seed, dtype=torch.float32):
    """Output and gradient of our attention, then the exact ones."""
    qkv, weight = random_case(shape, seed, dtype)
    found = attention.attention(qkv, shape[1], causal=causal)
    (gradient,) = torch.autograd.grad((found * weight).sum(), qkv)
    expected = exact_attention(qkv, shape[1], causal)
    (exact,) = torch.autograd.grad((expected * weight.double()).sum(), qkv)
    return found, gradient, expected, exact


shapes = st.tuples(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 200),
    st.sampled_from([1, 3, 8, 16, 20, 32, 40, 64]),
)


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(shape=shapes, causal=st.booleans(), seed=st.integers(0, 999))
def test_float32_values_and_gradients_are_exact(shape, causal, seed):
    found, gradient, expected, exact = both_ways(shape, causal, seed)
    assert (found - expected).abs().max().item() < 1e-5
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(shape=shapes, causal=st.booleans(), seed=st.integers(0, 999))
def test_bfloat16_errs_by_its_own_rounding_only(shape, causal, seed):
    found, gradient, expected, exact = both_ways(shape, causal, seed, torch.bfloat16)
    assert (found - expected).abs().max() < 0.01 * max(1, expected.abs().max())
    assert (gradient - exact).abs().max() < 0.02 * max(1, exact.abs().max())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_thread_count_changes_no_bit(dtype):
    qkv, weight = random_case((3, 2, 70, 16), 0, dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            output = attention.attention(qkv, 2, causal=True)
            found += [output, torch.autograd.grad((output * weight).sum(), qkv)[0]]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], one) for one in found[2::2])
    assert all(torch.equal(found[1], one) for one in found[3::2])


@needs_compiler
def test_other_types_and_exports_take_the_plain_path():
    qkv, _ = random_case((1, 1, 3, 4), 0)
    assert attention.takes(qkv.bfloat16())
    assert not attention.takes(qkv)
    assert not attention.takes(qkv.double())
    assert not attention.takes(qkv.bfloat16().to("meta"))
    assert attention.takes(qkv, "igpt")
    assert not attention.takes(qkv.bfloat16(), "torch")


@needs_compiler
@pytest.mark.parametrize("slow", ["igpt", "torch"])
def test_the_kernel_that_is_faster_for_the_size_at_hand_is_chosen(monkeypatch, slow):
    real = attention.attention
    name = "attention" if slow == "igpt" else "by_torch"

    def slowly(*args, **options):
        time.sleep(0.1)
        return real(*args, **options)

    monkeypatch.setattr(attention, name, slowly)
    found = attention.faster_kernel((2, 256, 64), 4, causal=True, dtype=torch.float32)
    assert found != slow


def test_small_work_and_machines_without_a_compiler_have_the_usual_kernel(monkeypatch):
    size = {"n_head": 2, "causal": True, "dtype": torch.bfloat16}
    if attention.is_built():
        assert attention.faster_kernel((4, 16, 32), **size) == "igpt"
    monkeypatch.setattr(attention, "is_built", lambda: False)
    assert attention.faster_kernel((4, 1024, 512), **size) == "torch"


@needs_compiler
def test_a_network_attends_by_the_kernel_it_is_told():
    model = lively_gpt(seq_len=70)
    tokens = random_tokens(model, 2)
    usual = model(tokens)
    model.attend_by("igpt")
    other = model(tokens)
    assert not torch.equal(usual, other)
    torch.testing.assert_close(other, usual, atol=1e-4, rtol=0)
    model.attend_by(None)
    assert torch.equal(model(tokens), usual)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself, and fails if that raises
@pytest.mark.skipif(not compute.has_compiler(), reason="needs a C++ compiler")
def test_compiled_blocks_equal_plain_ones_in_values_and_gradients():
    plain = lively_gpt(seq_len=9).train()
    compiled = copy.deepcopy(plain)
    for block in compiled.h:
        block.compile()
    tokens = random_tokens(plain, 2)
    for network in (plain, compiled):
        network(tokens).square().mean().backward()
    with torch.no_grad():
        assert (plain(tokens) - compiled(tokens)).abs().max().item() < 1e-4
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_network_in_bfloat16_takes_it_and_stays_near_float32():
    network = lively_gpt(seq_len=70).train()
    tokens = random_tokens(network, 2)
    exact = network(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(tokens)
    assert (found - exact).square().mean().sqrt() < 0.03 * exact.std()
