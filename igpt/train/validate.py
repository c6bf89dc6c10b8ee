"""The loss on images that are not trained on."""

import math

import numpy as np
import torch

from igpt import compute
from igpt.errors import Diverged
from igpt.tokens.masks import bert_masks
from igpt.train.objectives import loss_count, loss_sum
from igpt.train.stopping import remedy
from igpt.train.trainer import Trainer

VALID_BATCH = 32
# Stands for a step in the name of the masks' stream; training steps start at 0.
VALID_STEP = -1


# Compiling the blocks once more for this batch size and mode would cost more than it saves.
@compute.eager()
@torch.no_grad()  # not inference mode: FSDP's buffers are used in training again
def validation_nats(trainer: Trainer) -> float:
    """Mean loss of a run's validation images, shared by its ranks.

    BERT's masks depend on the seed and the image's place only.

    Returns:
        Nats per token over all T tokens (BERT: per image's mean masked token).
    """
    network, tokens, device = trainer.network, trainer.valid_tokens, trainer.device
    world, train = trainer.world, trainer.config.train
    sums = torch.zeros(2, dtype=compute.sums_dtype(device), device=device)  # loss, count
    first = world.slots(len(tokens)).start
    for cut in world.parts(len(tokens), VALID_BATCH):
        slots = range(first + cut.start, first + cut.stop)
        rows = np.asarray(tokens[slots.start : slots.stop], np.int64)
        part = torch.from_numpy(rows).to(device)
        masked = None
        if train.objective == "bert":
            masks = bert_masks(
                trainer.config.seed,
                VALID_STEP,
                slots=slots,
                seq_len=part.shape[1],
                mask_prob=train.mask_prob,
            )
            masked = torch.from_numpy(masks).to(device)
        with compute.autocast(device, trainer.dtype):
            logits = network(part, masked)
        trainer.moves += 1
        sums[0] += loss_sum(logits, part, masked)
        sums[1] += loss_count(train.objective, part, masked)
    total, count = world.sum(sums).tolist()
    return float(total / max(1, count))


def validated(trainer: Trainer) -> dict[str, float]:
    """Figures of the validation images; none where there are no such images.

    Images that are trained on as well (`data.fold_validation`) validate nothing, so that their loss
    has another name.

    Raises:
        Diverged: the loss is not finite.
    """
    if trainer.validate is not None:
        return trainer.validate(trainer)
    if not len(trainer.valid_tokens):
        return {}
    nats = validation_nats(trainer)
    if not math.isfinite(nats):
        raise Diverged(f"the validation loss is {nats} after step {trainer.step}{remedy(trainer)}")
    return {valid_name(fold_validation=trainer.config.data.fold_validation): nats}


def valid_name(*, fold_validation: bool) -> str:
    """What metrics.jsonl calls the loss on the validation images."""
    return "folded_nats" if fold_validation else "valid_nats"
