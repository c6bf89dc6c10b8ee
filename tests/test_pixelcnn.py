"""The PixelCNN baseline sees no later pixel, and learns."""

import math

import numpy as np
import pytest
import torch

from igpt.errors import UserError
from igpt.evaluation.likelihood import Counts
from records.pixelcnn import PixelCNN, PixelCNNConfig, pixelcnn_nats

SMALL = PixelCNNConfig(width=16, n_blocks=1, total_steps=40, batch_size=16, lr=1e-2)
SIDE, K = 6, 5


def images(n: int, seed: int) -> np.ndarray:
    """Each pixel repeats the one above it, with a little noise: (n, T)."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, K, (n, SIDE, SIDE))
    for row in range(1, SIDE):
        repeats = rng.random((n, SIDE)) < 0.95
        made[:, row] = np.where(repeats, made[:, row - 1], made[:, row])
    return made.reshape(n, -1)


def test_slot_sees_only_what_comes_before() -> None:
    network = PixelCNN(SMALL, n_colors=K, image_size=SIDE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        tokens = torch.from_numpy(images(1, 0))
        plain = network(tokens)
        for t in range(SIDE * SIDE):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % K
            moved = (network(changed) != plain).any(dim=2)[0]
            assert not moved[: t + 1].any()
            if t + 1 < SIDE * SIDE:
                assert moved[t + 1 :].any()


def test_pixel_above_is_seen_where_a_bigram_is_blind() -> None:
    train, judged = images(400, 1), images(100, 2)
    bigram = Counts.of(train, n_colors=K, stride=1).bigram_nats(judged)
    nats = pixelcnn_nats(train, judged, n_colors=K, config=SMALL)
    assert nats < 0.75 * bigram


def test_untrained_network_guesses_blindly() -> None:
    config = PixelCNNConfig(width=8, n_blocks=1, total_steps=0)
    nats = pixelcnn_nats(images(20, 1), images(20, 2), n_colors=K, config=config)
    assert nats == pytest.approx(math.log(K), abs=1e-6)


def test_raw_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="12 tokens are no square image"):
        pixelcnn_nats(np.zeros((4, 12), int), np.zeros((4, 12), int), n_colors=K, config=SMALL)
