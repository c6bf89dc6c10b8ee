"""What fits a classifier on features: one way in, `fit`, for every kind of features.

`lbfgs` finds the optimum for every L2 strength (`igpt.probing.logistic`). `sgd` is the paper's: the
features as they are, momentum 0.9, no decay, rates 30, 10, 3, ... each with a cosine to 0 (§3.4);
all rates see the same batches in one pass. `knn` has nothing to fit: the k nearest training images
by the cosine of their features vote, each with exp(cosine / 0.07) (Wu et al. 2018).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.images.splits import Split
from igpt.probing.protocol import (
    SCORED_ROWS,
    Labelled,
    LayerScore,
    ProbeResult,
    best_score,
    check_labels,
    judged,
    present_labels,
    probe_layers,
    result_of,
    score_of,
)
from igpt.tokens.batches import BatchStream

SolverName = Literal["lbfgs", "sgd", "knn"]
RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """Which one, and what it needs."""

    name: SolverName = "lbfgs"
    sgd_steps: int = 10_000
    """Updates of sgd, the same for each of its rates."""
    batch_size: int = 128
    """Images an update of sgd."""
    seed: int = 0
    """Of sgd's order of images."""
    device: torch.device | str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What came of the protocol: its figures and, but for knn, the chosen linear classifier."""

    result: ProbeResult
    weights: np.ndarray | None
    """(C, D) float32, fitted on train and validation; row c is for `result.labels[c]`."""
    biases: np.ndarray | None
    """(C,) float32."""


def fit(
    train: Labelled,
    valid: Labelled,
    test: Labelled,
    *,
    layers: Sequence[int],
    solver: Solver,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Choose layer and strength on validation, fit again on both, look at test once.

    Args:
        train: features of some layers, read a batch at a time by sgd: a memory map will do.
        valid: to choose on.
        test: looked at once.
        layers: the number of each row of `features`, for the record.
        solver: what fits; its strengths are penalties, rates or numbers of neighbours.
        progress: called with 1 after each layer.

    Raises:
        UserError: labels are missing, of one class or too few, or every rate explodes.
    """
    if solver.name == "lbfgs":
        found = probe_layers(
            train, valid, test, layers=layers, device=solver.device, progress=progress
        )
        return Fit(result=found[0], weights=found[1], biases=found[2])
    for split, name in ((train, "train"), (valid, "valid"), (test, "test")):
        check_labels(split.labels, split.features.shape[1], name)
    search = _by_sgd if solver.name == "sgd" else _by_neighbours
    return search((train, valid, test), layers, solver, progress or _unseen)


def _unseen(n: int) -> None:
    """Progress that nobody looks at."""


class Rows(Protocol):
    """(N, D) features that give some rows at a time: an array, or made as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray | slice, /) -> np.ndarray: ...


def _by_sgd(
    splits: tuple[Labelled, Labelled, Labelled],
    layers: Sequence[int],
    solver: Solver,
    progress: Callable[[int], None],
) -> Fit:
    train, valid, _ = splits
    present = present_labels(train.labels)
    codes = np.searchsorted(present, train.labels)
    scores = []
    for row, layer in enumerate(layers):
        weights, biases = descend([train.features[row]], codes, RATES, solver)
        tried = [
            score_of(w, b, present, valid.features[row], valid.labels, layer=layer, strength=lr)
            for lr, w, b in zip(RATES, weights, biases, strict=True)
            if np.isfinite(w).all() and np.isfinite(b).all()
        ]
        if not tried:
            raise UserError(f"no rate of {list(RATES)} kept the probe finite: scale the features")
        scores.append(best_score(tried))
        progress(1)
    best = best_score(scores)
    row = list(layers).index(best.layer)
    labels = np.concatenate([train.labels, valid.labels])
    present = present_labels(labels)
    both = [train.features[row], valid.features[row]]
    fitted = descend(both, np.searchsorted(present, labels), [best.strength], solver)
    weights, biases = fitted[0][0], fitted[1][0]
    if not np.isfinite(weights).all():
        raise UserError(
            f"rate {best.strength:g}, chosen on validation, exploded on train and validation "
            "together: use --solver lbfgs"
        )
    result = judged(scores, splits, row, weights, biases, present)
    return Fit(result=result, weights=weights, biases=biases)


def descend(
    parts: Sequence[Rows], codes: np.ndarray, rates: Sequence[float], solver: Solver
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression by SGD from zero, one problem a rate, all on the same batches.

    Args:
        parts: (n, D) features, end to end.
        codes: (N,) int64 classes of all rows, from 0.
        rates: (P,) first learning rates.
        solver: steps, batch, seed and device.

    Returns:
        (P, C, D) weights and (P, C) biases, float32; not finite where a rate exploded.
    """
    device = torch.device(solver.device)
    n_classes, width = int(codes.max()) + 1, parts[0].shape[1]
    first = torch.tensor(rates, device=device)[:, None, None]
    weights = torch.zeros(len(rates), n_classes, width + 1, device=device)  # the last is the bias
    speed = torch.zeros_like(weights)
    size = min(solver.batch_size, len(codes))
    rows = np.arange(len(codes))[:, None]
    order = BatchStream(rows, None, None, batch_size=size, seed=solver.seed, name="sgd-probe")
    for step in range(solver.sgd_steps):
        chosen = np.sort(order.at(step).ids)  # sorted: a memory map is read in its order
        batch = torch.from_numpy(gathered(parts, chosen)).to(device)
        batch = torch.cat([batch, torch.ones(len(batch), 1, device=device)], dim=1)
        gradient = _gradient(weights, batch, torch.from_numpy(codes[chosen]).to(device))
        speed.mul_(MOMENTUM).add_(gradient)
        factor = 0.5 * (1 + math.cos(math.pi * step / solver.sgd_steps))
        weights -= factor * first * speed
    found = weights.cpu().numpy()
    return np.ascontiguousarray(found[..., :-1]), np.ascontiguousarray(found[..., -1])


def _gradient(weights: Tensor, batch: Tensor, codes: Tensor) -> Tensor:
    """Of the mean log-loss of each problem: (P, C, D + 1) like the weights."""
    n_problems, n_classes, _ = weights.shape
    scores = (weights.flatten(0, 1) @ batch.T).view(n_problems, n_classes, -1)
    error = torch.softmax(scores, dim=1)
    error[:, codes, torch.arange(len(codes), device=codes.device)] -= 1
    return ((error / len(codes)).flatten(0, 1) @ batch).view_as(weights)


def gathered(parts: Sequence[Rows], chosen: np.ndarray) -> np.ndarray:
    """Rows `chosen`, increasing, of the parts end to end: (n, D) float32."""
    found, start = [], 0
    for part in parts:
        here = chosen[(chosen >= start) & (chosen < start + len(part))]
        if len(here):
            found.append(part[here - start])
        start += len(part)
    return np.concatenate(found).astype(np.float32, copy=False)


def _by_neighbours(
    splits: tuple[Labelled, Labelled, Labelled],
    layers: Sequence[int],
    solver: Solver,
    progress: Callable[[int], None],
) -> Fit:
    train, valid, test = splits
    present = present_labels(train.labels)
    scores = []
    for row, layer in enumerate(layers):
        codes = np.searchsorted(present, train.labels)
        answers = neighbours(
            [train.features[row]], codes, valid.features[row], NEIGHBOURS, solver.device
        )
        tried = [
            LayerScore(
                layer=layer,
                strength=k,
                valid_accuracy=float((present[answer] == valid.labels).mean()),
                valid_loss_nats=math.inf,
            )
            for k, answer in zip(NEIGHBOURS, answers, strict=True)
        ]
        scores.append(best_score(tried))
        progress(1)
    best = best_score(scores)
    row = list(layers).index(best.layer)
    labels = np.concatenate([train.labels, valid.labels])
    present = present_labels(labels)
    both = [train.features[row], valid.features[row]]
    (answer,) = neighbours(
        both,
        np.searchsorted(present, labels),
        test.features[row],
        [int(best.strength)],
        solver.device,
    )
    accuracy = float((present[answer] == test.labels).mean())
    width = int(train.features[row].shape[1])
    result = result_of(scores, splits, accuracy, n_features=width, present=present)
    return Fit(result=result, weights=None, biases=None)


def neighbours(
    parts: Sequence[Rows],
    codes: np.ndarray,
    queries: Rows,
    numbers: Sequence[int],
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The class that the k nearest of the parts' rows vote for, for several k.

    Args:
        parts: (n, D) features, end to end.
        codes: (N,) int64 classes of all rows, from 0.
        queries: (M, D) features to classify.
        numbers: (P,) of neighbours; more than there are rows means all.
        device: where to compute.

    Returns:
        (P, M) int64 classes.
    """
    of_row = torch.from_numpy(codes).to(device)
    n_classes, most = int(codes.max()) + 1, min(max(numbers), len(codes))
    answers = np.empty((len(numbers), len(queries)), np.int64)
    for start in range(0, len(queries), SCORED_ROWS):
        rows = slice(start, start + SCORED_ROWS)
        asked = _unit(queries[rows], device)
        near = torch.full((len(asked), 0), 0.0, device=device)
        where = near.long()
        for first, known in _stretches(parts):
            likeness = asked @ _unit(known, device).T
            near = torch.cat([near, likeness], dim=1)
            places = torch.arange(first, first + len(known), device=device)
            where = torch.cat([where, places.expand(len(asked), -1)], dim=1)
            near, kept = near.topk(min(most, near.shape[1]), dim=1)
            where = where.gather(1, kept)
        for column, k in enumerate(numbers):
            votes = torch.zeros(len(asked), n_classes, device=device)
            voters = of_row[where[:, :k]]
            votes.scatter_add_(1, voters, (near[:, :k] / TEMPERATURE).exp())
            answers[column, rows] = votes.argmax(dim=1).cpu().numpy()
    return answers


def _stretches(parts: Sequence[Rows]) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for part in parts:
        for start in range(0, len(part), SCORED_ROWS):
            yield first + start, part[start : start + SCORED_ROWS]
        first += len(part)


def _unit(features: np.ndarray, device: torch.device | str) -> Tensor:
    rows = torch.from_numpy(np.array(features, np.float32)).to(device)
    return torch.nn.functional.normalize(rows, dim=1)


def labels_of(data: PackedSet, split: Split) -> np.ndarray:
    """The labels of a split: (n,) int64.

    Raises:
        UserError: it has none.
    """
    labels = data.labels(split)
    if labels is None:
        raise UserError(f"{data.source} has no labels: give one folder a class, or a labelled set")
    return labels
