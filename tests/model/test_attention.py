import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt import compute
from igpt.model import attention
from tests.strategies import lively_gpt, random_tokens


def random_heads(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 2), st.integers(1, 3), st.integers(1, 11), st.sampled_from([1, 3, 8])
    ),
    stretch=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_stretches_give_the_fused_kernels_values_and_gradients(shape, stretch, seed):
    usual = attention.STRETCH
    attention.STRETCH = stretch
    try:
        heads = random_heads(shape, seed)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
        found = attention.causal_attention(*heads)
        gradients = torch.autograd.grad((found * weight).sum(), heads)
        expected = F.scaled_dot_product_attention(*(h.double() for h in heads), is_causal=True)
        exact = torch.autograd.grad((expected * weight).sum(), heads)
    finally:
        attention.STRETCH = usual
    assert (found - expected).abs().max().item() < 1e-5
    for one, other in zip(gradients, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


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
