"""Small networks with random weights, and the obvious way to sample from them."""

import numpy as np
import torch

from igpt.config import ModelConfig, SampleConfig
from igpt.generate.draw import draw
from igpt.model.gpt import GPT


def network(
    *, bias=False, n_layer=2, n_head=2, n_embd=12, n_colors=7, seq_len=16, objective="ar", scale=1.5
) -> GPT:
    """Random weights whose logits spread as a trained network's do."""
    config = ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=bias)
    model = GPT(config, n_colors=n_colors, seq_len=seq_len, objective=objective)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, scale / parameter.shape[-1] ** 0.5, generator=generator)
    return model.eval()


def drawn_without_cache(model: GPT, uniform: np.ndarray, config: SampleConfig) -> np.ndarray:
    """The obvious way: the whole network anew for every token."""
    B, T = uniform.shape
    tokens = torch.zeros(B, T, dtype=torch.int64)
    for t in range(T):
        with torch.no_grad():
            logits = model(tokens)[:, t]
        tokens[:, t] = draw(logits, torch.from_numpy(uniform[:, t]), config)
    return tokens.numpy()
