"""Subsets, the choice inside them, and that test labels choose nothing."""

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.probing.fewlabel import FewLabelResult, choose_inside, evaluate_few_labels, subset_rows
from igpt.probing.protocol import Labelled

N_CLASSES, WIDTH = 4, 12


def split(n: int, seed: int, *, signal: tuple[float, ...] = (0.1, 1.5, 0.5)) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % N_CLASSES
    centres = np.random.default_rng(0).normal(size=(N_CLASSES, WIDTH))
    noise = rng.normal(size=(len(signal), n, WIDTH))
    features = np.array(signal)[:, None, None] * centres[labels] + noise
    return Labelled(features.astype(np.float32), labels)


@pytest.mark.parametrize("labels_per_class", [1, 3, 25])
def test_subset_has_as_many_of_each_class(labels_per_class: int) -> None:
    labels = np.random.default_rng(0).integers(0, N_CLASSES, 200)
    rows = subset_rows(labels, labels_per_class, seed=0, subset=0)
    assert len(set(rows.tolist())) == labels_per_class * N_CLASSES
    assert np.bincount(labels[rows]).tolist() == [labels_per_class] * N_CLASSES
    again = subset_rows(labels, labels_per_class, seed=0, subset=0)
    assert np.array_equal(rows, again)
    for other in ({"seed": 1, "subset": 0}, {"seed": 0, "subset": 1}):
        assert not np.array_equal(rows, subset_rows(labels, labels_per_class, **other))


@pytest.mark.parametrize("labels_per_class", [4, 120])
def test_layer_that_knows_the_classes_is_chosen(labels_per_class: int) -> None:
    train, test = split(N_CLASSES * 200, 1), split(400, 2)
    result = evaluate_few_labels(
        train, test, layers=[0, 5, 9], labels_per_class=labels_per_class, n_subsets=3
    )
    assert result.layers.count(5) >= 2
    assert result.mean > 0.8
    assert len(result.accuracies) == 3
    assert result.mean == pytest.approx(np.mean(result.accuracies))
    assert result.sd == pytest.approx(np.std(result.accuracies, ddof=1))


def test_test_labels_choose_nothing() -> None:
    train, test = split(200, 1), split(100, 2)
    shuffled = Labelled(test.features, np.roll(test.labels, 1))
    one = evaluate_few_labels(train, test, layers=[0, 1, 2], labels_per_class=5, n_subsets=2)
    other = evaluate_few_labels(train, shuffled, layers=[0, 1, 2], labels_per_class=5, n_subsets=2)
    assert (one.layers, one.strengths) == (other.layers, other.strengths)
    assert one.mean > other.mean


def test_more_labels_do_better() -> None:
    train, test = split(800, 1, signal=(0.7,)), split(400, 2, signal=(0.7,))
    means = [
        evaluate_few_labels(train, test, layers=[0], labels_per_class=n, n_subsets=3).mean
        for n in (1, 5, 50)
    ]
    assert means == sorted(means)


def test_one_label_a_class_takes_the_middle() -> None:
    few = split(N_CLASSES, 1)
    assert choose_inside(few, 1, strengths=[0.1, 1.0, 10.0]) == (1, 1.0)


def test_result_of_one_subset_has_no_spread() -> None:
    result = FewLabelResult.of([0.5], labels_per_class=4, n_test=10)
    assert (result.mean, result.sd) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("labels", "asked", "message"),
    [
        (np.array([0, 0, 1]), 2, "class 1 has 1 images, fewer than the 2 labels per class"),
        (np.array([3, 3, 3]), 1, "one class"),
        (np.array([0, 1]), 0, "must be at least 1"),
    ],
)
def test_subsets_that_cannot_be_drawn_are_refused(
    labels: np.ndarray, asked: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        subset_rows(labels, asked, seed=0, subset=0)
