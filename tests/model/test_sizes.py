import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.config import ModelConfig
from igpt.model.gpt import GPT
from igpt.model.sizes import SIZES, Shape, forward_flops, parameter_count
from tests.strategies import model_configs


def shape_at(side, objective="ar"):
    return Shape(n_colors=512, seq_len=side * side, objective=objective)


# PAPER.md §2.2: the paper's models, counted by running the released code.
@pytest.mark.parametrize(
    ("size", "side", "objective", "count"),
    [
        ("s", 32, "ar", 76_571_648),
        ("s", 32, "bert", 76_571_136),
        ("m", 32, "ar", 455_157_760),
        ("m", 32, "bert", 455_156_736),
        ("l", 32, "ar", 1_362_250_752),
        ("l", 32, "bert", 1_362_249_216),
        ("l", 48, "ar", 1_364_216_832),
        ("xl", 64, "ar", 6_810_875_904),
        ("xl", 32, "ar", 6_801_438_720),
    ],
)
def test_published_sizes_have_the_published_counts(size, side, objective, count):
    assert parameter_count(SIZES[size], shape_at(side, objective)) == count


@settings(max_examples=20, deadline=None)
@given(
    config=model_configs(),
    bias=st.booleans(),
    objective=st.sampled_from(["ar", "bert"]),
    n_colors=st.integers(2, 9),
)
def test_formula_counts_what_the_network_has(config, bias, objective, n_colors):
    config = ModelConfig(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd, bias=bias
    )
    with torch.device("meta"):
        network = GPT(config, n_colors=n_colors, seq_len=9, objective=objective)
    counted = sum(parameter.numel() for parameter in network.parameters())
    shape = Shape(n_colors=n_colors, seq_len=9, objective=objective)
    assert parameter_count(config, shape) == counted


def test_operations_of_s_match_the_papers_appendix():
    # PAPER.md §B: 206.7 GFLOP dense; causal training 0.543 TFLOP an image.
    assert forward_flops(SIZES["s"], shape_at(32, "bert")) == pytest.approx(206.7e9, rel=1e-3)
    assert 3 * forward_flops(SIZES["s"], shape_at(32)) == pytest.approx(0.543e12, rel=2e-3)
