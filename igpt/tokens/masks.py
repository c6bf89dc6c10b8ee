"""Which positions BERT pre-training hides (paper §2.1), and a trained model when it looks."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from igpt import streams


def bert_masks(
    seed: int, step: int, *, slots: range, seq_len: int, mask_prob: float
) -> NDArray[np.bool_]:
    """Hidden positions of a step's images, each on its own with chance `mask_prob`.

    Each slot has its own random stream, so its mask does not depend on which slots a rank holds.

    Args:
        seed: of the run.
        step: of the run.
        slots: places in the batch.
        seq_len: tokens T of one image.
        mask_prob: chance that a position is hidden.

    Returns:
        (len(slots), T) bool, true where hidden.
    """
    draws = np.empty((len(slots), seq_len))
    for row, slot in zip(draws, slots, strict=True):
        streams.stream(seed, "mask", step, slot).random(out=row)
    return draws < mask_prob


def own_masks(tokens: NDArray[np.integer], *, seed: int, mask_prob: float) -> NDArray[np.bool_]:
    """Hidden positions of images to look at: each image's own, whatever it is looked at with.

    Args:
        tokens: (N, T); the same tokens get the same mask.
        seed: other seeds hide other positions.
        mask_prob: chance that a position is hidden.

    Returns:
        (N, T) bool, true where hidden.
    """
    draws = np.empty(tokens.shape)
    for row, image in zip(draws, np.ascontiguousarray(tokens, "<i4"), strict=True):
        key = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little")
        streams.stream(seed, "own mask", slot=key).random(out=row)
    return draws < mask_prob
