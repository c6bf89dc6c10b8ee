"""The SGD probe: its search over rates, and that it comes near the exact optimum's accuracy."""

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.evaluate import sgd
from igpt.evaluate.probe import Labelled, probe_layers
from igpt.evaluate.sgd import probe_by_sgd
from igpt.evaluate.vote import voted_accuracy


def split(n: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(0).normal(size=(4, 10))
    features = 0.2 * (0.8 * centres[labels] + rng.normal(size=(n, 10)))
    return Labelled(features[None].astype(np.float32), labels + 3)


def test_accuracy_is_near_that_of_the_exact_optimum() -> None:
    splits = split(1000, 1), split(300, 2), split(500, 3)
    result, weights, biases = probe_by_sgd(*splits, total_steps=120)
    exact, _, _ = probe_layers(*splits, layers=[0])
    assert result.test_accuracy > exact.test_accuracy - 0.03
    assert weights.shape == (4, 10)
    assert biases.shape == (4,)
    assert result.tried[0][0] == 30.0
    assert result.valid_accuracy == max(accuracy for _, accuracy in result.tried)


def test_search_ends_where_validation_accuracy_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.3, 0.6, 0.5, 0.55])
    monkeypatch.setattr(sgd, "_accuracy", lambda *_: next(accuracies))
    result, _, _ = probe_by_sgd(split(50, 1), split(20, 2), split(20, 3), total_steps=2)
    assert result.tried == ((30.0, 0.3), (10.0, 0.6), (3.0, 0.5))
    assert (result.lr, result.valid_accuracy, result.test_accuracy) == (10.0, 0.6, 0.55)


def test_rates_that_all_explode_are_refused() -> None:
    huge = Labelled(split(50, 1).features * 1e30, split(50, 1).labels)
    with pytest.raises(UserError, match="no rate"):
        probe_by_sgd(huge, huge, huge, total_steps=5, rates=[1e20])


def test_vote_over_masks_is_judged_by_the_modal_class() -> None:
    features = np.zeros((3, 2, 2), np.float32)
    features[:, :, 0] = [[1, 1], [1, -1], [-1, -1]]
    weights, biases = np.array([[-1.0, 0], [1.0, 0]]), np.zeros(2)
    present = np.array([5, 8])
    accuracy = voted_accuracy(
        features, np.array([8, 5]), weights=weights, biases=biases, present=present, seed=0
    )
    assert accuracy == 1.0
