"""The attentive head: what it sees that a mean does not, and the protocol around it."""

import numpy as np
import pytest
import torch

from igpt.images.packed.read import PackedSet
from igpt.probing.attentive import AttentiveHead, probe_attentive
from igpt.probing.exact import Seen
from tests.networks import pixel_model

STEPS = 150
SEEN: Seen = {"normalised": True, "pooling": "mean", "precision": "fp32"}


def test_a_head_tells_what_the_mean_of_positions_does_not() -> None:
    """Channel 1 is marked in one position of each image; the class is channel 0 there."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(256, 8, 4, generator=rng)
    marked = torch.randint(8, (256,), generator=rng)
    rows = torch.arange(256)
    features[rows, marked, 1] = 8.0
    classes = (features[rows, marked, 0] > 0).long()
    features[:, 0, 0] -= features[:, :, 0].sum(1)  # the mean knows nothing of it
    classes = (features[rows, marked, 0] > 0).long()
    head = AttentiveHead(4, 1, 2, seed=0)
    assert head(features).abs().max() == 0
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float((head(features).argmax(1) == classes).float().mean()) > 0.9


def test_figures_follow_the_protocol_and_test_labels_choose_nothing(
    digits: PackedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, some = pixel_model(), digits.at_most(200)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    found = probe_attentive(model, some, 1, seen=SEEN, steps=STEPS)
    assert found["layer"] == 1 and found["valid_accuracy"] > 0.14
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    real = PackedSet.labels

    def turned(self: PackedSet, split: str) -> np.ndarray | None:
        labels = real(self, split)  # type: ignore[arg-type]
        return None if labels is None else (labels[::-1] if split == "test" else labels)

    monkeypatch.setattr(PackedSet, "labels", turned)
    other = probe_attentive(model, some, 1, seen=SEEN, steps=STEPS)
    assert {k: other[k] for k in ("lr", "valid_accuracy")} == {
        k: found[k] for k in ("lr", "valid_accuracy")
    }
