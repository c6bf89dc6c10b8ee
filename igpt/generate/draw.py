"""One token from each row of logits, decided by a number that was drawn beforehand."""

import numpy as np
import torch
from torch import Tensor

from igpt import streams
from igpt.config import SampleConfig


def uniforms(seed: int, name: str, *, slots: list[tuple[int, int]], seq_len: int) -> np.ndarray:
    """The numbers that decide each token of each image.

    Every image has a stream of its own, so its numbers depend neither on how many are drawn with it
    nor on which of its tokens are given.

    Args:
        seed: seed of the whole request.
        name: stream name.
        slots: (step, slot) of each image in the stream.
        seq_len: tokens T of one image.

    Returns:
        (B, T) float64 in [0, 1).
    """
    rows = [streams.stream(seed, name, step, slot).random(seq_len) for step, slot in slots]
    return np.stack(rows)  # (B, T)


def kept_probabilities(logits: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities after temperature, top-k and top-p; what is cut off is 0, sums are not 1.

    Colours that tie with the last one kept are kept as well, so the order of a sort never matters.

    Args:
        logits: (..., K) float.
        config: its temperature is above 0.

    Returns:
        (..., K) float64.
    """
    # The likeliest stands at 0 before a tiny temperature divides: it stays, the others become -inf.
    behind = logits.double() - logits.amax(-1, keepdim=True).double()
    probabilities = torch.softmax(behind / config.temperature, -1)  # (..., K)
    n_colors = logits.shape[-1]
    if config.top_k is not None and config.top_k < n_colors:
        least = probabilities.topk(config.top_k, -1).values[..., -1:]  # (..., 1)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    if config.top_p is not None and config.top_p < 1:
        ranked = probabilities.sort(-1, descending=True).values  # (..., K)
        before = ranked.cumsum(-1) - ranked  # mass of the likelier ones
        inside = before < config.top_p * ranked.sum(-1, keepdim=True)
        least = ranked.where(inside, torch.inf).amin(-1, keepdim=True)  # (..., 1)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    return probabilities


def draw(logits: Tensor, uniform: Tensor, config: SampleConfig) -> Tensor:
    """Tokens by inverse distribution function, in float64.

    A row's token depends on that row alone: rounding of the logits can change it only where
    `uniform` falls within that rounding of a boundary between two colours.

    Args:
        logits: (..., K) float.
        uniform: (...) float64 in [0, 1).
        config: temperature 0 takes the likeliest colour, the lower index on ties.

    Returns:
        (...) int64 in [0, K).
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(uniform.device)  # some accelerators have no float64
    cumulated = kept_probabilities(logits, config).cumsum(-1)  # (..., K)
    total = cumulated[..., -1:].contiguous()
    token = torch.searchsorted(cumulated, uniform.unsqueeze(-1) * total, right=True)
    last = torch.searchsorted(cumulated, total)  # the product can round up to the total
    return torch.minimum(token, last).squeeze(-1)
