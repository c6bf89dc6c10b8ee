"""How unexpected every single token of an image is, with a network of either objective."""

from collections.abc import Callable

import numpy as np
import torch

from igpt import compute, streams
from igpt.config import TrainConfig
from igpt.evaluation.likelihood import BATCH_LOGITS, token_surprise
from igpt.model.gpt import GPT
from igpt.probing.features import TokenSource, check_tokens
from igpt.train.objectives import token_nats


def whole_surprise(
    network: GPT,
    tokens: TokenSource,
    *,
    mask_prob: float = TrainConfig().mask_prob,
    precision: compute.Precision = "auto",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """-log p of every token, in nats, of one image whatever else it is judged with.

    BERT: each token is predicted once, in passes that hide about `mask_prob` of the tokens, the
    same ones of every image. So every image gets a mean that can be compared, though no likelihood.

    Args:
        network: on the device to use.
        tokens: (N, T) integers.
        mask_prob: BERT only, the share of positions masked in training.
        precision: of the matrix products; the loss itself is float32.
        progress: called with the number of images done after each batch.

    Returns:
        (N, T) float32.

    Raises:
        UserError: no images, or tokens of another length.
    """
    if network.objective == "ar":
        return token_surprise(network, tokens, precision=precision, progress=progress)
    check_tokens(network, tokens)
    device = network.wpe.weight.device
    dtype = compute.choose_dtype(precision, device)
    batch_size = max(
        1, compute.batch_of(BATCH_LOGITS, device) // (network.seq_len * network.n_colors)
    )
    passes = [torch.from_numpy(hidden).to(device) for hidden in _passes(network.seq_len, mask_prob)]
    nats = np.empty((len(tokens), network.seq_len), np.float32)
    with torch.inference_mode(), compute.autocast(device, dtype):
        for start in range(0, len(tokens), batch_size):
            rows = np.asarray(tokens[start : start + batch_size]).astype(np.int64)
            batch = torch.from_numpy(rows).to(device)  # (B, T)
            found = torch.zeros(batch.shape, dtype=torch.float32, device=device)  # (B, T)
            for hidden in passes:
                masked = hidden.expand(batch.shape)
                found = torch.where(masked, token_nats(network(batch, masked), batch), found)
            nats[start : start + len(batch)] = found.cpu().numpy()
            if progress is not None:
                progress(len(batch))
    return nats


def _passes(seq_len: int, mask_prob: float) -> list[np.ndarray]:
    """Masks that hide every position once, each about `mask_prob` of them: (T,) bool each."""
    n = min(seq_len, max(2, round(1 / mask_prob)))
    turn = streams.stream(0, "surprise").permutation(seq_len) % n
    return [turn == i for i in range(n)]
