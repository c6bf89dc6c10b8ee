"""Hypothesis strategies and small random things that several tests share."""

import torch
from hypothesis import strategies as st

from igpt.config import ModelConfig
from igpt.model.gpt import GPT


@st.composite
def model_configs(draw, max_layers=3):
    """Small networks of odd shapes; head sizes are often no perfect square."""
    n_head = draw(st.integers(1, 3))
    head_size = draw(st.sampled_from([2, 3, 5, 8, 12]))
    return ModelConfig(
        n_layer=draw(st.integers(1, max_layers)), n_head=n_head, n_embd=n_head * head_size
    )


def lively_gpt(config=None, *, n_colors=11, seq_len=16, objective="ar", seed=0):
    """A network with every tensor drawn at random, the logits' sd about 1 or more.

    At the initial weights the head is zero, so that a wrong network would pass most tests.
    """
    config = config or ModelConfig(n_layer=2, n_head=2, n_embd=16)
    network = GPT(config, n_colors=n_colors, seq_len=seq_len, objective=objective)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 1.0 if "ln_" in name else 1.5 / config.n_embd**0.5
            parameter.normal_(
                1.0 if "ln_" in name else 0.0, 0.3 if "ln_" in name else scale, generator=generator
            )
        # A few channels are sometimes nearly alike, so that their logits need more.
        network.head.weight.mul_(2.0 if config.n_embd > 3 else 4.0)
        network.wte.weight.mul_(config.n_embd**0.5)
    return network.eval()


def random_tokens(network, n, *, seed=0, seq_len=None):
    """(n, T) int64 over the whole vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, seq_len or network.seq_len)
    return torch.randint(0, network.n_colors, shape, generator=generator)
