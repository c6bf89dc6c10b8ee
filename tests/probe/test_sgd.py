"""The SGD probe: its search over rates, and that it comes near the exact optimum's accuracy."""

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.probe import sgd
from igpt.probe.protocol import Labelled, LayerScore, probe_layers
from igpt.probe.sgd import probe_layers_by_sgd
from igpt.probe.vote import voted_accuracy


def split(n: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(0).normal(size=(4, 10))
    features = 0.2 * (0.8 * centres[labels] + rng.normal(size=(n, 10)))
    return Labelled(features[None].astype(np.float32), labels + 3)


def test_accuracy_is_near_that_of_the_exact_optimum() -> None:
    splits = split(1000, 1), split(300, 2), split(500, 3)
    result, weights, biases = probe_layers_by_sgd(*splits, layers=[4], total_steps=120)
    exact, _, _ = probe_layers(*splits, layers=[4])
    assert result.test_accuracy > exact.test_accuracy - 0.03
    assert weights.shape == (4, 10)
    assert biases.shape == (4,)
    assert (result.layer, result.labels) == (4, (3, 4, 5, 6))
    assert result.strength in sgd.RATES
    assert (result.n_train, result.n_valid, result.n_test) == (1000, 300, 500)


def test_layer_that_knows_the_classes_is_chosen_and_test_labels_choose_nothing() -> None:
    train, valid, test = (
        Labelled(np.concatenate([0.01 * part.features, part.features]), part.labels)
        for part in (split(300, 1), split(100, 2), split(100, 3))
    )
    shuffled = Labelled(test.features, np.roll(test.labels, 1))
    one, weights, _ = probe_layers_by_sgd(
        train, valid, test, layers=[0, 1], total_steps=40, rates=[3.0, 1.0]
    )
    other, same_weights, _ = probe_layers_by_sgd(
        train, valid, shuffled, layers=[0, 1], total_steps=40, rates=[3.0, 1.0]
    )
    assert one.layer == 1
    assert one.by_layer == other.by_layer
    assert np.array_equal(weights, same_weights)
    assert one.test_accuracy > other.test_accuracy


def test_both_splits_are_fitted_in_the_end() -> None:
    parts = [np.arange(6.0)[:, None], np.arange(6.0, 10.0)[:, None]]
    chosen = np.array([0, 5, 6, 9])
    assert sgd._gathered(parts, chosen)[:, 0].tolist() == chosen.tolist()


def test_search_ends_where_validation_accuracy_falls() -> None:
    accuracies = {30.0: None, 10.0: 0.6, 3.0: 0.7, 1.0: 0.5, 0.3: 0.9}
    tried: list[float] = []

    def score(lr: float) -> LayerScore | None:
        tried.append(lr)
        value = accuracies[lr]
        if value is None:
            return None
        return LayerScore(layer=0, strength=lr, valid_accuracy=value, valid_loss_nats=1.0)

    assert sgd._searched(score, list(accuracies)).strength == 3.0
    assert tried == [30.0, 10.0, 3.0, 1.0]


def test_rates_that_all_explode_are_refused() -> None:
    huge = Labelled(split(50, 1).features * 1e30, split(50, 1).labels)
    with pytest.raises(UserError, match="no rate"):
        probe_layers_by_sgd(huge, huge, huge, layers=[0], total_steps=5, rates=[1e20])


def test_vote_over_masks_is_judged_by_the_modal_class() -> None:
    features = np.zeros((3, 2, 2), np.float32)
    features[:, :, 0] = [[1, 1], [1, -1], [-1, -1]]
    weights, biases = np.array([[-1.0, 0], [1.0, 0]]), np.zeros(2)
    present = np.array([5, 8])
    accuracy = voted_accuracy(
        features, np.array([8, 5]), weights=weights, biases=biases, present=present, seed=0
    )
    assert accuracy == 1.0
