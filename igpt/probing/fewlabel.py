"""What a few labels can do: a linear classifier on frozen features of few images (paper §4.7).

As in the paper: random subsets with equally many labels a class, no augmentation, no fine-tuning,
mean and standard deviation over subsets. The paper does not say how it chose the layer; here layer
and strength are chosen inside each subset, by cross-validation on its own few labels, so that no
other label is ever used. Test labels only count what is right.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from igpt import streams
from igpt.errors import UserError
from igpt.model.head import log_softmax
from igpt.probing.protocol import (
    STRENGTHS,
    Labelled,
    LabelledImages,
    fit_standardised,
    present_labels,
)
from igpt.tokens.tokenizer import ImageArray

N_FOLDS = 4
# From here on, one fold holds enough images to choose by, and fitting starts to cost.
ONE_FOLD_FROM = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FewLabelResult:
    """Test accuracy over random subsets with the same number of labels a class."""

    labels_per_class: int
    accuracies: tuple[float, ...]
    """One a subset, in the order of their seeds."""
    mean: float
    sd: float
    """Over subsets, with n - 1; 0 where there is one subset only."""
    layers: tuple[int, ...]
    """The layer each subset chose."""
    strengths: tuple[float, ...]
    n_test: int

    @classmethod
    def of(
        cls,
        accuracies: Sequence[float],
        *,
        labels_per_class: int,
        n_test: int,
        layers: Sequence[int] = (),
        strengths: Sequence[float] = (),
    ) -> "FewLabelResult":
        """The result of accuracies that are there already; baselines choose no layer."""
        return cls(
            labels_per_class=labels_per_class,
            accuracies=tuple(accuracies),
            mean=statistics.mean(accuracies),
            sd=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            layers=tuple(layers),
            strengths=tuple(strengths),
            n_test=n_test,
        )


def subset_rows(
    labels: np.ndarray,
    labels_per_class: int,
    *,
    seed: int,
    subset: int,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Random images, equally many a class: (C * labels_per_class,) int64 rows, class by class.

    Args:
        labels: (N,) of the images to draw from.
        labels_per_class: images a class.
        seed: of all subsets.
        subset: which one.
        classes: their names; none: they are called by number.

    Raises:
        UserError: a class has fewer images, or there is one class only.
    """
    if labels_per_class < 1:
        raise UserError(f"labels per class is {labels_per_class}: it must be at least 1")
    present = present_labels(labels)
    if len(present) < 2:
        raise UserError("all images are of one class: few-label evaluation needs at least two")
    rng = streams.stream(seed, f"few-labels/{labels_per_class}", slot=subset)
    chosen = []
    for label in present.tolist():
        rows = np.flatnonzero(labels == label)
        if len(rows) < labels_per_class:
            name = label if classes is None else classes[label]
            raise UserError(
                f"class {name} has {len(rows)} training images, fewer than the {labels_per_class} "
                "labels per class asked for: ask for fewer"
            )
        chosen.append(rng.permutation(rows)[:labels_per_class])
    return np.concatenate(chosen)


def evaluate_few_labels(
    train: Labelled,
    test: Labelled,
    *,
    layers: Sequence[int],
    labels_per_class: int,
    n_subsets: int = 5,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> FewLabelResult:
    """Fit a classifier on each random subset and score it on the whole test split.

    Args:
        train: images that subsets are drawn from.
        test: to score on.
        layers: the number of each row of `features`, for the record.
        labels_per_class: images a class in a subset.
        n_subsets: random subsets.
        seed: of the subsets; the same for features and raw pixels gives the same images.
        strengths: scikit-learn's C, for features standardised on the subset.
        device: where to fit.
        progress: called with 1 after each subset.

    Raises:
        UserError: too few images of a class.
    """
    accuracies, chosen_layers, chosen_strengths = [], [], []
    for subset in range(n_subsets):
        rows = subset_rows(train.labels, labels_per_class, seed=seed, subset=subset)
        few = Labelled(np.asarray(train.features[:, rows]), train.labels[rows])
        row, strength = choose_inside(few, labels_per_class, strengths=strengths, device=device)
        weights, biases = fit_standardised(few.features[row], few.labels, [strength], device)
        scores = test.features[row] @ weights[0].T + biases[0]
        predicted = present_labels(few.labels)[scores.argmax(axis=1)]
        accuracies.append(float((predicted == test.labels).mean()))
        chosen_layers.append(layers[row])
        chosen_strengths.append(strength)
        if progress is not None:
            progress(1)
    return FewLabelResult.of(
        accuracies,
        labels_per_class=labels_per_class,
        n_test=len(test.labels),
        layers=chosen_layers,
        strengths=chosen_strengths,
    )


def choose_inside(
    few: Labelled,
    labels_per_class: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
) -> tuple[int, float]:
    """The row of `features` and the strength with the least cross-validated loss.

    The loss decides: with a few images left out, accuracy takes a handful of values only. With one
    label a class nothing can be left out: the middle layer and the middle strength.

    Args:
        few: images in any order.
        labels_per_class: images of the rarest class.
        strengths: to choose from.
        device: where to fit.
    """
    if labels_per_class == 1:
        return len(few.features) // 2, strengths[len(strengths) // 2]
    n_folds = min(N_FOLDS, labels_per_class)
    fold = _rank_in_class(few.labels) % n_folds
    n_used = 1 if labels_per_class >= ONE_FOLD_FROM else n_folds
    losses = np.zeros((len(few.features), len(strengths)))
    codes = np.unique(few.labels, return_inverse=True)[1]
    for held_out in (fold == number for number in range(n_used)):
        for row, features in enumerate(few.features):
            fit = fit_standardised(features[~held_out], codes[~held_out], strengths, device)
            for column, (weights, biases) in enumerate(zip(*fit, strict=True)):
                log_prob = log_softmax(features[held_out] @ weights.T + biases)
                right = log_prob[np.arange(len(log_prob)), codes[held_out]]
                losses[row, column] -= right.sum()
    best_row, best_column = divmod(int(losses.argmin()), len(strengths))
    return best_row, strengths[best_column]


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many images of its class stand before each one: (N,) int64."""
    order = np.argsort(labels, kind="stable")
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(first, sizes)
    return ranks


def evaluate_supervised(
    train: LabelledImages,
    test: LabelledImages,
    *,
    fit: Callable[[LabelledImages, int], Callable[[ImageArray], np.ndarray]],
    labels_per_class: int,
    n_subsets: int = 5,
    seed: int = 0,
) -> FewLabelResult:
    """A baseline that is trained on the same subsets as the probe and on nothing else.

    Args:
        train: images that subsets are drawn from; labels from 0 to C - 1.
        test: to score on.
        fit: takes a subset and its number, returns what classifies (N, S, S, 3) uint8 images.
        labels_per_class: images a class in a subset.
        n_subsets: random subsets.
        seed: of the subsets.
    """
    accuracies = []
    for subset in range(n_subsets):
        rows = subset_rows(train.labels, labels_per_class, seed=seed, subset=subset)
        few = LabelledImages(np.asarray(train.images[rows]), train.labels[rows])
        codes = fit(few, subset)(test.images)
        accuracies.append(float((codes == test.labels).mean()))
    return FewLabelResult.of(accuracies, labels_per_class=labels_per_class, n_test=len(test.labels))
