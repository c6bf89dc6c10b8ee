"""The linear probe: how well a linear classifier on frozen features does, by layer (paper §2.4).

Layer and L2 strength are chosen on validation; that one classifier is fitted again on train and
validation together and looks at the test split once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from igpt.errors import UserError
from igpt.model.head import log_softmax
from igpt.probing.logistic import fit_logistic
from igpt.tokens.tokenizer import ImageArray

# scikit-learn's C, on features of mean 0 and variance 1: the paper does not state its own.
STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)

SCORED_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Labelled:
    """One split: features of some layers, and what is on each image."""

    features: Any
    """(n_layers, N, D) float32: an array, or `Lazy` rows."""
    labels: np.ndarray
    """(N,) int64."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """One split: images and the class of each, numbered from 0 to C - 1."""

    images: ImageArray
    """(N, S, S, 3) uint8, indexed by slices or integer arrays."""
    labels: np.ndarray
    """(N,) int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """The best strength of one layer, by validation accuracy."""

    layer: int
    strength: float
    """The penalty, as scikit-learn's C; of sgd, the learning rate; of knn, the neighbours."""
    valid_accuracy: float
    valid_loss_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The accuracy by layer on validation, and that of the chosen layer on test."""

    by_layer: tuple[LayerScore, ...]
    layer: int
    strength: float
    valid_accuracy: float
    test_accuracy: float
    test_accuracy_se: float
    """Standard error of a share counted on n_test images."""
    n_train: int
    n_valid: int
    n_test: int
    n_features: int
    labels: tuple[int, ...]
    """The data set's number of each of the C classes that the classifier tells apart."""


def probe_layers(
    train: Labelled,
    valid: Labelled,
    test: Labelled,
    *,
    layers: Sequence[int],
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> tuple[ProbeResult, np.ndarray, np.ndarray]:
    """Run the protocol at the head of this page.

    Args:
        train: to fit on.
        valid: to choose on.
        test: looked at once.
        layers: the number of each row of `features`, for the record.
        strengths: scikit-learn's C, for features standardised on the images fitted on.
        device: where to fit.
        progress: called with 1 after each layer.

    Returns:
        The result, and the chosen classifier's (C, D) weights and (C,) biases for the features as
        given; its row c is for the class `result.labels[c]`.

    Raises:
        UserError: labels are missing, or are of one class only, or there are fewer than classes.
    """
    for split, name in ((train, "train"), (valid, "valid"), (test, "test")):
        check_labels(split.labels, split.features.shape[1], name)
    train, valid, test = (_held(split) for split in (train, valid, test))
    present = present_labels(train.labels)
    scores, fits = [], []
    for layer, on_train, on_valid in zip(layers, train.features, valid.features, strict=True):
        fit = fit_standardised(on_train, train.labels, strengths, device)
        tried = [
            score_of(weights, biases, present, on_valid, valid.labels, layer=layer, strength=c)
            for c, weights, biases in zip(strengths, *fit, strict=True)
        ]
        scores.append(best_score(tried))
        fits.append(fit)
        if progress is not None:
            progress(1)
    best = best_score(scores)
    row, column = list(layers).index(best.layer), list(strengths).index(best.strength)
    both = np.concatenate([train.features[row], valid.features[row]])
    labels = np.concatenate([train.labels, valid.labels])
    same_classes = np.array_equal(present, present_labels(labels))
    found = fits[row][0][[column]], fits[row][1][[column]]
    start = found if same_classes else None  # near the optimum that is looked for
    fit = fit_standardised(both, labels, [best.strength], device, start=start)
    weights, biases = (part[0] for part in fit)
    present = present_labels(labels)
    result = judged(scores, (train, valid, test), row, weights, biases, present)
    return result, weights, biases


def _held(split: Labelled) -> Labelled:
    held = split.features
    return Labelled(held.whole(), split.labels) if isinstance(held, Lazy) else split


def best_score(scores: Sequence[LayerScore]) -> LayerScore:
    """The best accuracy on validation; among equals, the lowest loss."""
    return max(scores, key=lambda score: (score.valid_accuracy, -score.valid_loss_nats))


def judged(
    scores: Sequence[LayerScore],
    splits: tuple[Labelled, Labelled, Labelled],
    row: int,
    weights: np.ndarray,
    biases: np.ndarray,
    present: np.ndarray,
) -> ProbeResult:
    """The result of a choice that was made: here the test labels are looked at, once.

    Args:
        scores: of every layer on validation.
        splits: train, valid and test.
        row: of `features`, the chosen layer's.
        weights: (C, D), fitted on train and validation.
        biases: (C,) of the same.
        present: (C,) int64, the label that each row of weights is for.
    """
    test = splits[2]
    accuracy = accuracy_of(weights, biases, present, test.features[row], test.labels)
    return result_of(scores, splits, accuracy, n_features=weights.shape[1], present=present)


def result_of(
    scores: Sequence[LayerScore],
    splits: tuple[Labelled, Labelled, Labelled],
    accuracy: float,
    *,
    n_features: int,
    present: np.ndarray,
) -> ProbeResult:
    """The figures of a choice and of its accuracy on test."""
    train, valid, test = splits
    best = best_score(scores)
    return ProbeResult(
        by_layer=tuple(scores),
        layer=best.layer,
        strength=best.strength,
        valid_accuracy=best.valid_accuracy,
        test_accuracy=accuracy,
        test_accuracy_se=math.sqrt(accuracy * (1 - accuracy) / len(test.labels)),
        n_train=len(train.labels),
        n_valid=len(valid.labels),
        n_test=len(test.labels),
        n_features=n_features,
        labels=tuple(present.tolist()),
    )


class Lazy:
    """(1, N, D) features of which rows are made as they are asked for, a batch at a time.

    Args:
        make: rows, a slice or increasing integers, -> (n, D) float32.
        n: N.
        width: D.
    """

    def __init__(
        self, make: Callable[[np.ndarray | slice], np.ndarray], n: int, width: int
    ) -> None:
        self._make = make
        self.shape = (1, n, width)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, layer: int) -> "LazyRows":
        if layer != 0:
            raise IndexError(layer)  # what ends an iteration
        return LazyRows(self._make, self.shape[1], self.shape[2])

    def whole(self) -> np.ndarray:
        """All rows at once, as the exact solver needs them."""
        return self._make(slice(None))[None]


class LazyRows:
    """(N, D) features made as they are asked for."""

    def __init__(
        self, make: Callable[[np.ndarray | slice], np.ndarray], n: int, width: int
    ) -> None:
        self._make = make
        self.shape = (n, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._make(rows)


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Raw pixels in [-1, 1] as features: (N, S, S, 3) uint8 -> (N, S * S * 3) float32."""
    flat = np.asarray(images).reshape(len(images), -1).astype(np.float32)
    flat /= 127.5
    flat -= 1
    return flat


def join_layers(features: np.ndarray, taken: Sequence[int]) -> Lazy:
    """Features of some layers side by side (paper §4.4).

    Args:
        features: (n_layers, N, D).
        taken: rows of it.

    Returns:
        (1, N, len(taken) * D) features, put side by side as they are read.
    """

    def side_by_side(rows: np.ndarray | slice) -> np.ndarray:
        return np.concatenate([features[row][rows] for row in taken], axis=1)

    _, n, width = features.shape
    return Lazy(side_by_side, n, len(taken) * width)


def window(around: int, n_layers: int, n_joined: int) -> range:
    """So many adjacent layers centred on one, moved inwards near an end."""
    n_joined = min(n_joined, n_layers)
    first = min(max(around - n_joined // 2, 0), n_layers - n_joined)
    return range(first, first + n_joined)


def present_labels(labels: np.ndarray) -> np.ndarray:
    """The distinct labels in increasing order, (C,) int64: row c of a fit belongs to the c-th."""
    return np.unique(labels).astype(np.int64)


def check_labels(labels: np.ndarray | None, n_images: int, split: str) -> None:
    """Refuse labels that no classifier can be fitted to or judged by.

    Raises:
        UserError: labels are missing, too few, or all the same.
    """
    if labels is None:
        raise UserError(
            f"the {split} images have no labels: a probe needs classes (one folder a class)"
        )
    if len(labels) != n_images:
        raise UserError(f"{split} has {n_images} images but {len(labels)} labels: prepare it again")
    if n_images == 0:
        raise UserError(f"there are no {split} images: a probe needs some in every split")
    if n_without := int((labels < 0).sum()):
        raise UserError(f"{n_without} of the {split} images have no label: label or remove them")
    if split == "train":
        n_classes = len(np.unique(labels))
        if n_classes < 2:
            raise UserError("all train images are of one class: a probe needs at least two")
        if n_images == n_classes:
            raise UserError(
                f"{n_images} train images of {n_classes} classes: a probe needs more of each"
            )


def fit_standardised(
    features: np.ndarray,
    labels: np.ndarray,
    strengths: Sequence[float],
    device: torch.device | str,
    *,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the classes that occur: (P, C, D) weights and (P, C) biases, one problem a strength.

    Args:
        features: (N, D).
        labels: (N,) int64.
        strengths: scikit-learn's C.
        device: where to fit.
        start: weights and biases to begin at, as this returns them.
    """
    codes = np.unique(labels, return_inverse=True)[1]
    fit = fit_logistic(
        features,
        codes,
        n_classes=int(codes.max()) + 1,
        strengths=strengths,
        standardise=True,
        start=start,
        device=device,
    )
    return fit.weights, fit.biases


def accuracy_of(
    weights: np.ndarray,
    biases: np.ndarray,
    present: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
) -> float:
    """The share of (N, D) features whose likeliest class is the label; some rows at a time."""
    right = 0
    for start in range(0, len(labels), SCORED_ROWS):
        rows = slice(start, start + SCORED_ROWS)
        codes = (features[rows] @ weights.T + biases).argmax(axis=1)
        right += int((present[codes] == labels[rows]).sum())
    return right / len(labels)


def score_of(
    weights: np.ndarray,
    biases: np.ndarray,
    present: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    layer: int,
    strength: float,
) -> LayerScore:
    """How one fit does on validation: accuracy, and log-loss where the label is a known one."""
    known = np.flatnonzero(np.isin(labels, present))  # others cannot be guessed: no loss for them
    codes = np.searchsorted(present, labels[known])
    right, total = 0, 0.0
    for start in range(0, len(known), SCORED_ROWS):
        part = slice(start, start + SCORED_ROWS)
        log_prob = log_softmax(features[known[part]] @ weights.T + biases)
        right += int((log_prob.argmax(axis=1) == codes[part]).sum())
        total -= float(log_prob[np.arange(len(log_prob)), codes[part]].sum())
    loss = total / len(codes) if len(codes) else math.inf
    return LayerScore(
        layer=layer,
        strength=strength,
        valid_accuracy=right / len(labels),
        valid_loss_nats=loss,
    )
