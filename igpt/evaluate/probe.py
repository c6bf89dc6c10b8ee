"""The linear probe: how well a linear classifier on frozen features does, by layer (paper §2.4).

Layer and L2 strength are chosen on validation; that one classifier is fitted again on train and
validation together and looks at the test split once.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from igpt import runs
from igpt.errors import UserError
from igpt.evaluate.logistic import fit_logistic

SCHEMA_VERSION = 1

# scikit-learn's C, on features of mean 0 and variance 1: the paper does not state its own.
STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One split: features of some layers, and what is on each image."""

    features: np.ndarray
    """(n_layers, N, D) float32."""
    labels: np.ndarray
    """(N,) int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """The best strength of one layer, by validation accuracy."""

    layer: int
    strength: float
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProbe:
    """A fitted classifier on pooled features, bound to the model and colours it was fitted on."""

    weights: np.ndarray
    """(C, D) float32."""
    biases: np.ndarray
    """(C,) float32."""
    layer: int
    normalised: bool
    strength: float
    labels: tuple[int, ...]
    """The data set's number of each of the C classes."""
    classes: tuple[str, ...]
    """The name of each of the C classes."""
    model_digest: str
    """`PixelModel.digest`: of the weights and the colours."""
    protocol: str
    """One sentence: on what it was fitted and how it was chosen."""

    def log_prob(self, features: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, C) float32 log-probabilities."""
        return log_softmax(features @ self.weights.T + self.biases)

    def classify(self, features: np.ndarray) -> list[str]:
        """(N, D) features -> the likeliest class of each image."""
        return [self.classes[code] for code in self.log_prob(features).argmax(axis=1)]

    def save(self, folder: Path) -> None:
        """Write `probe.safetensors`, then `probe.json` that names its hash, into a model folder."""
        facts = dataclasses.asdict(self)
        tensors = {name: np.ascontiguousarray(facts.pop(name)) for name in ("weights", "biases")}
        data = save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        runs.write_bytes(folder / "probe.safetensors", data)
        document = {"schema_version": SCHEMA_VERSION, **facts, "sha256": digest}
        runs.write_json(folder / "probe.json", document)

    @classmethod
    def load(cls, folder: Path, *, model_digest: str) -> Self:
        """The probe in a model folder.

        Raises:
            UserError: there is none, it is damaged, or it was fitted on another model or palette.
        """
        facts = runs.read_json(folder / "probe.json")
        if not isinstance(facts, dict) or facts.get("model_digest") != model_digest:
            raise UserError(
                f"the probe in {folder} was fitted on another model or palette: "
                "run igpt probe on this one"
            )
        try:
            data = (folder / "probe.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                raise ValueError("probe.safetensors is not the file that probe.json names")
            return cls._from(facts, load(data))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the probe in {folder} is damaged ({error}): run igpt probe again"
            ) from error

    @classmethod
    def _from(cls, facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        if facts["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {facts['schema_version']}")
        probe = cls(
            weights=tensors["weights"],
            biases=tensors["biases"],
            layer=int(facts["layer"]),
            normalised=bool(facts["normalised"]),
            strength=float(facts["strength"]),
            labels=tuple(int(label) for label in facts["labels"]),
            classes=tuple(str(name) for name in facts["classes"]),
            model_digest=str(facts["model_digest"]),
            protocol=str(facts["protocol"]),
        )
        n_classes = len(probe.classes)
        fits = probe.weights.ndim == 2 and len(probe.labels) == len(probe.weights) == n_classes
        if not fits or probe.biases.shape != (n_classes,):
            raise ValueError("shapes do not fit")
        return probe


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
    present = present_labels(train.labels)
    scores = []
    for layer, on_train, on_valid in zip(layers, train.features, valid.features, strict=True):
        fit = fit_standardised(on_train, train.labels, strengths, device)
        scores.append(_best_strength(fit, present, on_valid, valid.labels, layer, strengths))
        if progress is not None:
            progress(1)
    best = max(scores, key=lambda score: (score.valid_accuracy, -score.valid_loss_nats))
    row = list(layers).index(best.layer)
    both = np.concatenate([train.features[row], valid.features[row]])
    labels = np.concatenate([train.labels, valid.labels])
    weights, biases = (part[0] for part in fit_standardised(both, labels, [best.strength], device))
    present = present_labels(labels)
    accuracy = _accuracy(weights, biases, present, test.features[row], test.labels)
    result = ProbeResult(
        by_layer=tuple(scores),
        layer=best.layer,
        strength=best.strength,
        valid_accuracy=best.valid_accuracy,
        test_accuracy=accuracy,
        test_accuracy_se=math.sqrt(accuracy * (1 - accuracy) / len(test.labels)),
        n_train=len(train.labels),
        n_valid=len(valid.labels),
        n_test=len(test.labels),
        n_features=both.shape[1],
        labels=tuple(present.tolist()),
    )
    return result, weights, biases


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Raw pixels in [-1, 1] as features: (N, S, S, 3) uint8 -> (N, S * S * 3) float32."""
    flat = np.asarray(images).reshape(len(images), -1).astype(np.float32)
    flat /= 127.5
    flat -= 1
    return flat


def join_layers(
    features: np.ndarray, around: int, *, n_joined: int = 5
) -> tuple[np.ndarray, range]:
    """Features of adjacent layers side by side, centred on the best one (paper §4.4).

    Args:
        features: (n_layers, N, D) of all layers.
        around: the best layer; near an end the window moves inwards.
        n_joined: layers to take.

    Returns:
        (N, n_joined * D) float32 and the layers taken.
    """
    n_joined = min(n_joined, len(features))
    first = min(max(around - n_joined // 2, 0), len(features) - n_joined)
    taken = range(first, first + n_joined)
    return np.concatenate([features[layer] for layer in taken], axis=1), taken


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
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the classes that occur: (P, C, D) weights and (P, C) biases, one problem a strength."""
    codes = np.unique(labels, return_inverse=True)[1]
    fit = fit_logistic(
        features,
        codes,
        n_classes=int(codes.max()) + 1,
        strengths=strengths,
        standardise=True,
        device=device,
    )
    return fit.weights, fit.biases


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def _accuracy(
    weights: np.ndarray,
    biases: np.ndarray,
    present: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
) -> float:
    predicted = present[(features @ weights.T + biases).argmax(axis=1)]
    return float((predicted == labels).mean())


def _best_strength(
    fit: tuple[np.ndarray, np.ndarray],
    present: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    layer: int,
    strengths: Sequence[float],
) -> LayerScore:
    """The strength with the best accuracy on validation; among equals, the one of lower loss."""
    scores = []
    known = np.isin(labels, present)  # a class that train lacks cannot be guessed: no loss for it
    codes = np.searchsorted(present, labels[known])
    for strength, weights, biases in zip(strengths, *fit, strict=True):
        log_prob = log_softmax(features[known] @ weights.T + biases)
        right = int((log_prob.argmax(axis=1) == codes).sum())
        loss = -float(log_prob[np.arange(len(codes)), codes].mean()) if len(codes) else math.inf
        scores.append(
            LayerScore(
                layer=layer,
                strength=strength,
                valid_accuracy=right / len(labels),
                valid_loss_nats=loss,
            )
        )
    return max(scores, key=lambda score: (score.valid_accuracy, -score.valid_loss_nats))
