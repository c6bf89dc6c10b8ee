"""The linear probe by stochastic gradients, for sets too large for `logistic` (paper §3.4).

Momentum 0.9, no weight decay, rates 30, 10, 3, ... tried in turn until validation accuracy falls,
each with a cosine to 0. As in the paper, features are taken as they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.errors import UserError
from igpt.evaluate.probe import Labelled, present_labels
from igpt.tokens.batches import BatchStream

RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
SCORED_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdResult:
    """The rate with the best validation accuracy, and that one's test accuracy."""

    lr: float
    valid_accuracy: float
    test_accuracy: float
    tried: tuple[tuple[float, float], ...]
    """Each rate tried and its validation accuracy."""
    total_steps: int
    n_train: int
    n_valid: int
    n_test: int


def probe_by_sgd(
    train: Labelled,
    valid: Labelled,
    test: Labelled,
    *,
    total_steps: int,
    batch_size: int = 128,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> tuple[SgdResult, np.ndarray, np.ndarray]:
    """Search the rate on validation, then look at test once.

    Args:
        train: features of one layer, (1, N, D), read a batch at a time: a memory map will do.
        valid: to choose the rate by.
        test: to report on.
        total_steps: updates for each rate.
        batch_size: images an update.
        rates: tried in turn; where all explode, that is a UserError.
        seed: of the order of images.
        device: where to compute.
        progress: called with 1 after each step.

    Returns:
        The result, and the (C, D) weights and (C,) biases of the classes of train in their order.
    """
    present = present_labels(train.labels)
    codes = np.searchsorted(present, train.labels)

    def fit(lr: float) -> tuple[np.ndarray, np.ndarray, float]:
        weights, biases = _fit(
            train.features[0],
            codes,
            n_classes=len(present),
            lr=lr,
            total_steps=total_steps,
            batch_size=batch_size,
            seed=seed,
            device=torch.device(device),
            progress=progress,
        )
        finite = bool(np.isfinite(weights).all())
        return weights, biases, _accuracy(weights, biases, present, valid) if finite else math.nan

    tried: list[tuple[float, float]] = []
    lr, weights, biases, accuracy = _searched(fit, rates, tried)
    result = SgdResult(
        lr=lr,
        valid_accuracy=accuracy,
        test_accuracy=_accuracy(weights, biases, present, test),
        tried=tuple(tried),
        total_steps=total_steps,
        n_train=len(train.labels),
        n_valid=len(valid.labels),
        n_test=len(test.labels),
    )
    return result, weights, biases


def _searched(
    fit: Callable[[float], tuple[np.ndarray, np.ndarray, float]],
    rates: Sequence[float],
    tried: list[tuple[float, float]],
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """The rate before the first that does worse on validation; `tried` gets each and its accuracy.

    A rate that explodes (accuracy nan) counts as 0 and is passed over.
    """
    found: tuple[float, np.ndarray, np.ndarray, float] | None = None
    for lr in rates:
        weights, biases, accuracy = fit(lr)
        exploded = math.isnan(accuracy)
        tried.append((lr, 0.0 if exploded else accuracy))
        if found is not None and not accuracy >= found[3]:
            break
        if not exploded:
            found = lr, weights, biases, accuracy
    if found is None:
        raise UserError(f"no rate of {list(rates)} kept the probe finite: try smaller ones")
    return found


def _fit(
    features: np.ndarray,
    codes: np.ndarray,
    *,
    n_classes: int,
    lr: float,
    total_steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(C, D) weights and (C,) biases, from zero."""
    weights = torch.zeros(n_classes, features.shape[1], device=device, requires_grad=True)
    biases = torch.zeros(n_classes, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weights, biases], lr, momentum=0.9)
    size = min(batch_size, len(codes))
    rows = np.arange(len(codes))[:, None]
    order = BatchStream(rows, None, None, batch_size=size, seed=seed, name="sgd-probe")
    for step in range(total_steps):
        chosen = np.sort(order.at(step).ids)  # sorted: a memory map is read in its order
        batch = _on(features[chosen], device)
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / total_steps))
        scores = F.linear(batch, weights, biases)
        loss = F.cross_entropy(scores, torch.from_numpy(codes[chosen]).to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(1)
    return weights.detach().cpu().numpy(), biases.detach().cpu().numpy()


def _on(features: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(features, np.float32)).to(device)


def _accuracy(
    weights: np.ndarray, biases: np.ndarray, present: np.ndarray, split: Labelled
) -> float:
    right = 0
    for start in range(0, len(split.labels), SCORED_ROWS):
        rows = slice(start, start + SCORED_ROWS)
        scores = split.features[0, rows] @ weights.T + biases
        right += int((present[scores.argmax(axis=1)] == split.labels[rows]).sum())
    return right / len(split.labels)
