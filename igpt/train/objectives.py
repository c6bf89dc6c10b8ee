"""The two pre-training losses (paper §2.1), each as a sum and a count that are divided only once.

Dividing after everything is added over micro-batches and ranks makes the loss independent of how a
batch was cut up. All values are in nats.
"""

import torch.nn.functional as F
from torch import Tensor

from igpt.config import Objective


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, in float32 whatever the logits are.

    Args:
        logits: (B, T, K) float.
        tokens: (B, T) int64.

    Returns:
        (B, T) float32, nats.
    """
    B, T, K = logits.shape
    nats = F.cross_entropy(logits.reshape(B * T, K).float(), tokens.reshape(-1), reduction="none")
    return nats.view(B, T)


def loss_sum(logits: Tensor, tokens: Tensor, masked: Tensor | None) -> Tensor:
    """The numerator of the loss over some images.

    Autoregressive (no mask): the sum over all tokens. BERT: for each image the mean over its masked
    tokens, summed over images; an image without a masked token adds nothing.

    Args:
        logits: (B, T, K) float.
        tokens: (B, T) int64.
        masked: (B, T) bool, or none for the autoregressive loss.

    Returns:
        () float32, nats.
    """
    if masked is None:
        B, T, K = logits.shape
        flat = logits.reshape(B * T, K).float()
        return F.cross_entropy(flat, tokens.reshape(-1), reduction="sum")
    nats = token_nats(logits, tokens) * masked
    return (nats.sum(1) / masked.sum(1).clamp(min=1)).sum()


def loss_count(objective: Objective, tokens: Tensor, masked: Tensor | None) -> int:
    """The denominator: tokens (autoregressive) or images with a masked token (BERT)."""
    if objective == "ar":
        return tokens.numel()
    assert masked is not None
    return int(masked.any(1).sum())
