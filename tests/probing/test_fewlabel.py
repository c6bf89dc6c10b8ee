"""Subsets, the choice inside them, and that test labels choose nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from igpt.errors import UserError
from igpt.probing import fewlabel
from igpt.probing.fewlabel import (
    FewLabelResult,
    choose_inside,
    evaluate_few_labels,
    evaluate_supervised,
    subset_rows,
)
from igpt.probing.protocol import STRENGTHS, Labelled, LabelledImages, fit_standardised
from igpt.tokens.tokenizer import ImageArray

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
    told: list[int] = []
    result = evaluate_few_labels(
        train,
        test,
        layers=[0, 5, 9],
        labels_per_class=labels_per_class,
        n_subsets=3,
        progress=told.append,
    )
    assert (told, result.n_test, result.labels_per_class) == ([1, 1, 1], 400, labels_per_class)
    assert len(result.strengths) == 3 and set(result.strengths) <= set(STRENGTHS)
    assert result.layers.count(5) >= 2
    assert result.mean > 0.8
    assert len(result.accuracies) == 3
    assert result.mean == pytest.approx(np.mean(result.accuracies))
    assert result.sd == pytest.approx(np.std(result.accuracies, ddof=1))


@pytest.mark.parametrize(
    ("labels_per_class", "n_folds", "left_out"), [(2, 2, 1), (3, 3, 1), (8, 4, 2), (100, 1, 25)]
)
def test_each_fold_leaves_out_as_many_of_every_class(
    labels_per_class: int, n_folds: int, left_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = split(N_CLASSES * labels_per_class, 1, signal=(1.0,))
    fits: list[set[bytes]] = []

    def fitted(features: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        fits.append({row.tobytes() for row in features})
        return fit_standardised(features, *rest)

    monkeypatch.setattr(fewlabel, "fit_standardised", fitted)
    choose_inside(few, labels_per_class)
    out = [[i for i, row in enumerate(few.features[0]) if row.tobytes() not in fit] for fit in fits]
    assert len(out) == n_folds
    for rows in out:
        assert np.bincount(few.labels[rows]).tolist() == [left_out] * N_CLASSES
    if labels_per_class < 100:
        assert sorted(np.concatenate(out).tolist()) == list(range(len(few.labels)))


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_the_choice_is_the_one_with_the_least_loss_on_what_is_left_out(mean: float) -> None:
    few = split(N_CLASSES * 3, 4, signal=(0.6, 0.9))
    few = Labelled(few.features + np.float32(mean), few.labels)
    strengths = (1e-3, 1e-2, 1e-1)
    losses = np.zeros((2, 3))
    for fold in range(3):  # labels go round, so each third of the rows has one of each class
        out = np.arange(len(few.labels)) // N_CLASSES == fold
        for row, column in np.ndindex(2, 3):
            rows = few.features[row].astype(np.float64)
            scaled = StandardScaler().fit(rows[~out]).transform(rows)
            plain = LogisticRegression(C=strengths[column], tol=1e-8, max_iter=1000)
            chances = plain.fit(scaled[~out], few.labels[~out]).predict_proba(scaled[out])
            losses[row, column] -= np.log(chances[np.arange(N_CLASSES), few.labels[out]]).sum()
    row, column = np.unravel_index(losses.argmin(), losses.shape)
    assert choose_inside(few, 3, strengths=strengths) == (row, strengths[column])


def test_a_baseline_is_trained_on_the_subsets_of_the_probe() -> None:
    labels = np.arange(20) % 2
    train = LabelledImages(np.arange(20).reshape(20, 1, 1, 1).astype(np.uint8), labels)
    test = LabelledImages(np.zeros((4, 1, 1, 1), np.uint8), np.array([0, 0, 0, 1]))
    seen = []

    def fit(few: LabelledImages, subset: int) -> Callable[[ImageArray], np.ndarray]:
        seen.append((np.asarray(few.images).reshape(-1).tolist(), few.labels.tolist()))
        return lambda images: np.full(len(images), subset)

    result = evaluate_supervised(train, test, fit=fit, labels_per_class=3, n_subsets=2, seed=5)
    rows = [subset_rows(labels, 3, seed=5, subset=subset) for subset in (0, 1)]
    assert seen == [(chosen.tolist(), labels[chosen].tolist()) for chosen in rows]
    assert result == FewLabelResult.of([0.75, 0.25], labels_per_class=3, n_test=4)


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
        (
            np.array([0, 0, 1]),
            2,
            "class 1 has 1 training images, fewer than the 2 labels per class",
        ),
        (np.array([3, 3, 3]), 1, "one class"),
        (np.array([0, 1]), 0, "must be at least 1"),
    ],
)
def test_subsets_that_cannot_be_drawn_are_refused(
    labels: np.ndarray, asked: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        subset_rows(labels, asked, seed=0, subset=0)
