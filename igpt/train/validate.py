"""The loss on images that are not trained on."""

import numpy as np
import torch

from igpt import compute
from igpt.model.gpt import GPT
from igpt.tokens.masks import bert_masks
from igpt.train.objectives import loss_count, loss_sum

BATCH_SIZE = 32
# Stands for a step in the name of the masks' stream; training steps start at 0.
VALID_STEP = -1


# Compiling the blocks once more for this batch size and mode would cost more than it saves.
@torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]
@torch.inference_mode()
def validation_nats(
    network: GPT,
    tokens: np.ndarray,
    *,
    mask_prob: float,
    seed: int,
    dtype: torch.dtype,
) -> float:
    """Mean loss of some images; BERT's masks depend on the seed and the image's place only.

    Args:
        network: the model, on any device.
        tokens: (N, T) integers.
        mask_prob: BERT's chance of masking a position.
        seed: of the masks.
        dtype: of the matrix products.

    Returns:
        Nats per token over all T tokens (BERT: per image's mean masked token).
    """
    device = next(network.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    for start in range(0, len(tokens), BATCH_SIZE):
        part = torch.from_numpy(np.asarray(tokens[start : start + BATCH_SIZE], np.int64)).to(device)
        masked = None
        if network.objective == "bert":
            slots = range(start, start + len(part))
            masks = bert_masks(
                seed, VALID_STEP, slots=slots, seq_len=part.shape[1], mask_prob=mask_prob
            )
            masked = torch.from_numpy(masks).to(device)
        with compute.autocast(device, dtype):
            logits = network(part, masked)
        total += loss_sum(logits, part, masked)
        count += loss_count(network.objective, part, masked)
    return float(total) / max(1, count)
