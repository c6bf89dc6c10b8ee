"""Multinomial logistic regression for many L2 strengths at once, at scikit-learn's optimum.

The objective is scikit-learn's: strength * sum of log-losses + 0.5 * ||W||^2, bias not penalised
(two classes have a row of W each, as any other number has).
All strengths are solved together by L-BFGS, so that each pass over the features is one matrix
product instead of one a strength. The features are turned to their principal axes, where the
Hessian at W = 0 is diagonal for every strength; a change of variables makes it the identity there.
That leaves the optimum where it is and takes tens of steps where the plain problem takes thousands.

Shapes: N images, D features, C classes, P problems (one a strength).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt.compute import for_float64
from igpt.errors import UserError

MAX_STEPS = 1000
MAX_HALVINGS = 30
HISTORY = 6
# Stop where the quadratic model promises less than this share of ln C, twice in a row.
TOLERANCE = 1e-7
# Up to this many features the eigenvectors of their covariance pay for themselves.
MAX_ROTATED = 4096
CHUNK_BYTES = 2**21


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticFit:
    """The optimum for each strength; scores are features @ weights[p].T + biases[p]."""

    strengths: tuple[float, ...]
    weights: np.ndarray
    """(P, C, D) float32."""
    biases: np.ndarray
    """(P, C) float32."""
    objectives: np.ndarray
    """(P,) float64, nats an image: mean log-loss + ||W||^2 / (2 strength N)."""
    n_steps: np.ndarray
    """(P,) int64, L-BFGS steps."""
    converged: np.ndarray
    """(P,) bool; false where `MAX_STEPS` came first."""


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    n_classes: int,
    strengths: Sequence[float],
    standardise: bool = False,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    device: torch.device | str = "cpu",
) -> LogisticFit:
    """Fit all strengths on the same images.

    Args:
        features: (N, D) floats, finite.
        labels: (N,) integers in [0, n_classes).
        n_classes: C, at least 2.
        strengths: scikit-learn's C, each above 0: the larger, the weaker the penalty.
        standardise: penalise the weights of features divided by their standard deviation (as if
            scikit-learn's StandardScaler came first); the weights returned fit `features` as given.
        start: weights (P, C, D) and biases (P, C) to begin at, such as those of a part of the
            images; none: all 0.
        device: where to compute.

    Raises:
        UserError: a feature is not finite.
    """
    axes = _principal_axes(features, standardise, for_float64(torch.device(device)))
    problem = _Problem(features, labels, axes, n_classes=n_classes, strengths=strengths)
    if start is not None:
        problem.begin_at(*start)
    solution = _lbfgs(problem)
    weights, biases = problem.unscaled(solution.points)
    return LogisticFit(
        strengths=tuple(strengths),
        weights=weights,
        biases=biases,
        objectives=solution.objectives.cpu().numpy(),
        n_steps=solution.n_steps.cpu().numpy(),
        converged=solution.converged.cpu().numpy(),
    )


@dataclass(frozen=True, slots=True)
class _Axes:
    """R features z = (x - mean) @ turn, with variances `variance` and (nearly) no covariance."""

    mean: Tensor  # (D,)
    turn: Tensor  # (D, R), or (D,) where only scaled
    back: Tensor  # its (pseudo-)inverse transposed, of the same shape
    variance: Tensor  # (R,)

    def apply(self, rows: Tensor) -> Tensor:
        centred = rows - self.mean
        return centred @ self.turn if self.turn.ndim == 2 else centred * self.turn

    def redo(self, weights: Tensor) -> Tensor:
        """(…, D) weights on x - mean -> (…, R) weights on z: the inverse of `undo`."""
        return weights @ self.back if self.back.ndim == 2 else weights * self.back

    def undo(self, weights: Tensor) -> Tensor:
        """(…, R) weights on z -> (…, D) weights on x - mean."""
        return weights @ self.turn.T if self.turn.ndim == 2 else weights * self.turn


def _principal_axes(features: np.ndarray, standardise: bool, device: torch.device) -> _Axes:
    n, width = features.shape
    mean = torch.from_numpy(features.mean(axis=0, dtype=np.float64)).to(device)
    if not torch.isfinite(mean).all():
        raise UserError("a feature is not a finite number: the model or its images are damaged")
    centre = mean.float()
    variance = torch.zeros(width, dtype=torch.float64, device=device)
    for rows in _row_chunks(features, device):
        variance += (rows - centre).square().sum(dim=0, dtype=torch.float64)
    variance /= n
    scale = torch.ones_like(variance)
    if standardise:
        # What varies by rounding only is constant: scaled up, it would be noise.
        varies = variance > 1e-10 * (variance + mean.square())
        scale = torch.where(varies, variance, 1.0).rsqrt()
    if min(n, width) > MAX_ROTATED:
        return _Axes(
            centre, scale.float(), (1 / scale).float(), (variance * scale.square()).float()
        )
    if n < width:  # the optimum lies in the span of the images: N axes are enough
        rows = (torch.from_numpy(np.array(features, np.float64)).to(device) - mean) * scale
        _, spread, turn = torch.linalg.svd(rows, full_matrices=False)
        return _Axes(centre, *_turned(turn.T, scale), (spread.square() / n).float())
    moment = torch.zeros((width, width), dtype=torch.float64, device=device)
    for rows in _row_chunks(features, device):
        rows -= centre
        moment += rows.T @ rows
    values, vectors = torch.linalg.eigh(moment * scale * scale[:, None] / n)
    return _Axes(centre, *_turned(vectors, scale), values.clamp(min=0).float())


def _turned(vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The map of `scale` and then onto orthonormal columns (D, R), and the way back."""
    return (scale[:, None] * vectors).float(), (vectors / scale[:, None]).float()


class _Problem:
    """The P objectives as functions of points (P, C, R + 1) whose Hessian at 0 is the identity.

    R is the number of `_Axes`: at most D, at most N.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        axes: _Axes,
        *,
        n_classes: int,
        strengths: Sequence[float],
    ) -> None:
        device = axes.mean.device
        n, width = len(features), len(axes.variance)
        self._axes = axes
        self._rows = torch.ones(
            n, width + 1, dtype=torch.float32, device=device
        )  # the last column meets the bias
        done = 0
        for rows in _row_chunks(features, device):
            self._rows[done : done + len(rows), :width] = axes.apply(rows)
            done += len(rows)
        codes = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
        sums = torch.zeros(n_classes, width + 1, dtype=torch.float64, device=device)
        for first in range(0, n, _chunk_rows(width)):
            part = slice(first, first + _chunk_rows(width))
            sums.index_add_(0, codes[part], self._rows[part].double())
        self._of_labels = sums.float()  # (C, R + 1): the rows of each class added up
        penalty = 1 / (torch.tensor(strengths, dtype=torch.float64, device=device) * n)
        self._penalty = penalty.float()  # (P,) of 0.5 * ||W||^2, an image
        bias_curvature = torch.full(
            (len(strengths), 1), 1 / n_classes, dtype=torch.float32, device=device
        )
        curvature = axes.variance / n_classes + self._penalty[:, None]  # (P, R)
        self._scale = torch.cat([curvature, bias_curvature], dim=1).rsqrt().unsqueeze(1)
        self.start = torch.zeros(
            len(strengths), n_classes, width + 1, dtype=torch.float32, device=device
        )

    def begin_at(self, weights: np.ndarray, biases: np.ndarray) -> None:
        """Start from weights (P, C, D) and biases (P, C) on the features as they were given."""
        device = self.start.device
        own = torch.from_numpy(np.asarray(weights, np.float32)).to(device)
        bias = torch.from_numpy(np.asarray(biases, np.float32)).to(device) + own @ self._axes.mean
        found = torch.cat([self._axes.redo(own), bias.unsqueeze(-1)], dim=-1)
        self.start = found / self._scale

    def unscaled(self, points: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Weights (P, C, D) and biases (P, C) on the features as they were given."""
        found = points * self._scale
        weights = self._axes.undo(found[..., :-1])
        biases = found[..., -1] - weights @ self._axes.mean
        return weights.cpu().numpy(), biases.cpu().numpy()

    def value_and_gradient(self, points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Of the problems `which` (A,) at points (A, C, R + 1): (A,) float64 and (A, C, R + 1)."""
        n_problems, n_classes, width = points.shape
        scale, penalty = self._scale[which], self._penalty[which]
        weights = points * scale
        flat = weights.view(n_problems * n_classes, width)
        loss = torch.zeros(n_problems, dtype=torch.float64, device=points.device)
        gradient = torch.zeros_like(flat)
        size = _chunk_rows(max(width, len(flat)))
        for start in range(0, len(self._rows), size):
            rows = self._rows[start : start + size]
            scores = (flat @ rows.T).view(n_problems, n_classes, len(rows))
            log_prob = torch.log_softmax(scores, dim=1)
            # log of the sum of exp(score): what any one score lost.
            loss += (scores[:, 0] - log_prob[:, 0]).sum(dim=1, dtype=torch.float64)
            gradient.addmm_(log_prob.exp_().view(len(flat), len(rows)), rows)
        n = len(self._rows)
        # The labels' own scores are linear in the weights: their part is known beforehand.
        loss -= (weights * self._of_labels).sum(dim=(1, 2), dtype=torch.float64)
        gradient = gradient.view_as(points) - self._of_labels
        shrunk = weights * penalty[:, None, None]
        shrunk[..., -1] = 0
        value = loss / n + 0.5 * (shrunk * weights).sum(dim=(1, 2), dtype=torch.float64)
        return value, (gradient / n + shrunk) * scale


def _chunk_rows(width: int) -> int:
    """Rows of float32 numbers that stay in a core's cache."""
    return max(16, CHUNK_BYTES // (4 * width))


def _row_chunks(features: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """(n, D) float32 stretches of the features, in order."""
    size = _chunk_rows(features.shape[1])
    for start in range(0, len(features), size):
        yield torch.from_numpy(np.array(features[start : start + size], np.float32)).to(device)


@dataclass(slots=True)
class _Solution:
    points: Tensor  # (P, C, R + 1)
    objectives: Tensor  # (P,) float64
    n_steps: Tensor  # (P,) int64
    converged: Tensor  # (P,) bool


def _lbfgs(problem: _Problem) -> _Solution:
    """Minimise every problem; one that is done leaves the batch."""
    points = problem.start
    n_classes = points.shape[1]
    active = torch.arange(len(points), device=points.device)
    values, gradients = problem.value_and_gradient(points, active)
    solution = _Solution(
        points.clone(),
        values.clone(),
        torch.zeros_like(active),
        torch.zeros_like(active).bool(),
    )
    memory = _Memory()
    quiet = torch.zeros_like(active)  # steps in a row that promised next to nothing
    for step in range(1, MAX_STEPS + 1):
        direction = memory.direction(gradients)
        slope = _dot(direction, gradients)  # below 0; half of it is the promised fall
        quiet = torch.where(-0.5 * slope < TOLERANCE * math.log(n_classes), quiet + 1, 0)
        moved, new_values, new_gradients, stuck = _line_search(
            problem, active, points, values, direction, slope
        )
        memory.add(moved - points, new_gradients - gradients)
        points, values, gradients = moved, new_values, new_gradients
        solution.points[active], solution.objectives[active] = points, values
        solution.n_steps[active] = step
        solution.converged[active] = quiet >= 2
        going = (quiet < 2) & ~stuck
        if not going.all():
            active, points, values, gradients, quiet = (
                part[going] for part in (active, points, values, gradients, quiet)
            )
            memory.keep(going)
        if len(active) == 0:
            break
    return solution


def _line_search(
    problem: _Problem,
    active: Tensor,
    points: Tensor,
    values: Tensor,
    direction: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve the step of each problem until it falls enough: new points, values, gradients, stuck.

    Convexity makes the curvature condition of L-BFGS hold for any step, so falling is all we ask.
    """
    length = torch.ones_like(slope)
    moved = points + direction
    new_values, new_gradients = problem.value_and_gradient(moved, active)
    rounding = 2e-7 * values.abs()
    for _ in range(MAX_HALVINGS):
        short = new_values > values + 1e-4 * length * slope + rounding
        if not short.any():
            return moved, new_values, new_gradients, short
        length = torch.where(short, length / 2, length)
        moved[short] = points[short] + length[short].float()[:, None, None] * direction[short]
        again = problem.value_and_gradient(moved[short], active[short])
        new_values[short], new_gradients[short] = again
    return moved, new_values, new_gradients, short


class _Memory:
    """The last `HISTORY` steps and changes of gradient: L-BFGS's picture of the Hessian."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # (s, y, 1 / s.y)
        self._gamma: Tensor | None = None  # (A,), scale of the inverse Hessian

    def add(self, step: Tensor, change: Tensor) -> None:
        curvature = _dot(step, change)
        size = _dot(change, change)
        usable = curvature > 1e-10 * size  # not so only by rounding: such a pair counts for nothing
        inverse = torch.where(usable, 1 / curvature, 0.0)
        self._pairs = [*self._pairs[1 - HISTORY :], (step, change, inverse)]
        before = torch.ones_like(curvature) if self._gamma is None else self._gamma
        self._gamma = torch.where(usable, curvature / size, before)

    def keep(self, going: Tensor) -> None:
        self._pairs = [(s[going], y[going], inverse[going]) for s, y, inverse in self._pairs]
        self._gamma = None if self._gamma is None else self._gamma[going]

    def direction(self, gradients: Tensor) -> Tensor:
        """Minus the inverse Hessian times gradients (A, C, R + 1), by the two-loop recursion."""
        q = -gradients
        if self._gamma is None:
            return q
        alphas = []
        for step, change, inverse in reversed(self._pairs):
            alpha = (inverse * _dot(step, q)).float()[:, None, None]
            q.addcmul_(alpha, change, value=-1)
            alphas.append(alpha)
        q *= self._gamma.float()[:, None, None]
        for (step, change, inverse), alpha in zip(self._pairs, reversed(alphas), strict=True):
            beta = (inverse * _dot(change, q)).float()[:, None, None]
            q.addcmul_(alpha - beta, step)
        return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(A, C, R + 1) twice -> (A,) float64."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double()  # type: ignore[no-any-return]
