"""The solver against scikit-learn and against what must hold at any optimum."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from igpt.errors import UserError
from igpt.probing import logistic
from igpt.probing.logistic import fit_logistic

STRENGTHS = (1e-4, 1e-2, 1.0, 100.0)


def problem(n: int, width: int, n_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of very different scales, far from zero, that half explain the labels."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.exp(-4 * np.arange(width) / width)
    latent = rng.normal(size=(n, width)) @ mixing / np.sqrt(width)
    scores = latent @ rng.normal(size=(width, n_classes)) + rng.gumbel(size=(n, n_classes))
    return (latent + 3).astype(np.float32), scores.argmax(axis=1)


def objective(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    strength: float,
) -> float:
    """scikit-learn's objective over strength * N, in float64, the slow and obvious way."""
    total = 0.0
    for row, label in zip(features.astype(np.float64), labels, strict=True):
        scores = weights.astype(np.float64) @ row + biases
        total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label]
    n = len(labels)
    return total / n + 0.5 * float((weights.astype(np.float64) ** 2).sum()) / (strength * n)


@pytest.mark.parametrize(("n", "width", "n_classes"), [(300, 12, 3), (60, 100, 4), (400, 30, 2)])
@pytest.mark.parametrize("standardise", [False, True])
def test_loss_is_within_1e4_of_scikit_learns(
    n: int, width: int, n_classes: int, standardise: bool
) -> None:
    features, labels = problem(n, width, n_classes)
    fit = fit_logistic(
        features, labels, n_classes=n_classes, strengths=STRENGTHS, standardise=standardise
    )
    assert fit.converged.all()
    reference = features.astype(np.float64)
    mean, spread = reference.mean(axis=0), reference.std(axis=0)
    if standardise:
        reference = StandardScaler().fit_transform(reference)
    for i, strength in enumerate(STRENGTHS):
        solver = "newton-cg" if n_classes > 2 else "newton-cholesky"
        theirs = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000, solver=solver)
        weights, biases = fit.weights[i].astype(np.float64), fit.biases[i].astype(np.float64)
        if standardise:
            biases = biases + weights @ mean
            weights = weights * spread
        ours = objective(reference, labels, weights, biases, strength)
        assert ours == pytest.approx(fit.objectives[i], abs=1e-5)
        theirs.fit(reference, labels)
        best = objective(reference, labels, *both_rows(theirs), strength)
        assert ours <= best + 1e-4


def both_rows(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """A row a class, also for two classes, where scikit-learn keeps their difference only."""
    if len(model.coef_) > 1:
        return model.coef_, model.intercept_
    half, shift = model.coef_[0] / 2, model.intercept_[0] / 2
    return np.stack([-half, half]), np.array([-shift, shift])


def test_gradient_is_the_slope_of_the_value() -> None:
    features, labels = problem(50, 5, 3)
    axes = logistic._principal_axes(features, True, torch.device("cpu"))
    made = logistic._Problem(features, labels, axes, n_classes=3, strengths=[0.1, 10.0])
    rng = np.random.default_rng(1)
    point = torch.from_numpy(rng.normal(size=made.start.shape).astype(np.float32))
    way = torch.from_numpy(rng.normal(size=made.start.shape).astype(np.float32))
    which = torch.arange(2)
    _, gradient = made.value_and_gradient(point, which)
    step = 1e-2
    ahead, _ = made.value_and_gradient(point + step * way, which)
    behind, _ = made.value_and_gradient(point - step * way, which)
    slope = (ahead - behind) / (2 * step)
    assert np.allclose(slope, (gradient * way).sum(dim=(1, 2)), rtol=2e-3)


def test_without_weights_every_image_loses_ln_c_however_many_there_are() -> None:
    features, labels = problem(5000, 4, 3)
    axes = logistic._principal_axes(features, False, torch.device("cpu"))
    made = logistic._Problem(features, labels, axes, n_classes=3, strengths=[1.0])
    value, _ = made.value_and_gradient(made.start, torch.arange(1))
    # Of one image ln 3 in float32; sums are exact to float64.
    assert float(value[0]) == pytest.approx(float(np.log(np.float32(3))), rel=1e-12)


def test_a_fit_that_begins_at_its_optimum_ends_after_two_quiet_steps() -> None:
    labels = np.arange(30) % 3  # of features that say nothing, equally many a class
    fit = fit_logistic(np.ones((30, 4), np.float32), labels, n_classes=3, strengths=[0.1, 10.0])
    assert (fit.n_steps.tolist(), fit.converged.tolist()) == ([2, 2], [True, True])
    assert np.abs(fit.weights).max() == 0


def test_direction_is_that_of_bfgs_with_its_matrix_written_out() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 6, 6))
    hessians = roots @ roots.transpose(0, 2, 1) + np.eye(6)
    memory, pairs = logistic._Memory(), []
    gradient = rng.normal(size=(2, 2, 3))
    assert np.array_equal(memory.direction(torch.tensor(gradient)), -gradient)
    for _ in range(logistic.HISTORY + 2):
        step = rng.normal(size=(2, 6))
        change = np.einsum("aij,aj->ai", hessians, step)
        pairs.append((step, change))
        memory.add(torch.tensor(step).view(2, 2, 3), torch.tensor(change).view(2, 2, 3))
    found = memory.direction(torch.tensor(gradient))
    for a in range(2):
        step, change = (part[a] for part in pairs[-1])
        inverse = np.eye(6) * (step @ change) / (change @ change)
        for step, change in ((s[a], y[a]) for s, y in pairs[-logistic.HISTORY :]):
            turn = np.eye(6) - np.outer(step, change) / (step @ change)
            inverse = turn @ inverse @ turn.T + np.outer(step, step) / (step @ change)
        assert np.allclose(found[a].reshape(-1), -inverse @ gradient[a].reshape(-1), rtol=1e-4)


def test_a_step_is_halved_until_it_falls_for_each_problem_alone() -> None:
    class Bowl:
        """x^2, of several problems."""

        def value_and_gradient(
            self, points: torch.Tensor, which: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            assert len(points) == len(which)
            return points.double().square().sum((1, 2)), 2 * points

    points = torch.tensor([1.0, 1.0, 1.0]).view(3, 1, 1)
    values, gradients = Bowl().value_and_gradient(points, torch.arange(3))
    direction = torch.tensor([-1.5, -3.0, 1.0]).view(3, 1, 1)  # the last leads uphill
    slope = (direction * gradients).double().sum((1, 2))
    slope[2] = -1.0
    moved, new_values, new_gradients, stuck = logistic._line_search(
        Bowl(),  # type: ignore[arg-type]
        torch.arange(3),
        points,
        values,
        direction,
        slope,
    )
    assert moved.reshape(-1)[:2].tolist() == [-0.5, -0.5]
    assert new_values[:2].tolist() == [0.25, 0.25]
    assert torch.equal(new_gradients, 2 * moved)
    assert stuck.tolist() == [False, False, False]
    assert moved[2] - 1 < 1e-6  # no longer than rounding


def test_few_steps_are_enough() -> None:
    features, labels = problem(300, 12, 3)
    fit = fit_logistic(features, labels, n_classes=3, strengths=STRENGTHS, standardise=True)
    assert fit.converged.all()
    assert fit.n_steps.max() < 20


def test_result_does_not_depend_on_the_other_strengths() -> None:
    features, labels = problem(200, 20, 3)
    together = fit_logistic(features, labels, n_classes=3, strengths=STRENGTHS)
    for i, strength in enumerate(STRENGTHS):
        alone = fit_logistic(features, labels, n_classes=3, strengths=[strength])
        assert alone.objectives[0] == pytest.approx(together.objectives[i], abs=1e-6)


@pytest.mark.parametrize(("n", "width", "rotated"), [(300, 20, 4096), (30, 60, 4096), (300, 20, 0)])
def test_start_near_the_optimum_ends_there_sooner(
    n: int, width: int, rotated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "MAX_ROTATED", rotated)
    features, labels = problem(n, width, 3)
    part = fit_logistic(features, labels, n_classes=3, strengths=STRENGTHS, standardise=True)
    again = fit_logistic(
        features,
        labels,
        n_classes=3,
        strengths=STRENGTHS,
        standardise=True,
        start=(part.weights, part.biases),
    )
    assert again.objectives == pytest.approx(part.objectives, abs=1e-5)
    assert again.n_steps.sum() < 0.5 * part.n_steps.sum()


def test_chunks_do_not_change_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(200, 20, 3)
    whole = fit_logistic(features, labels, n_classes=3, strengths=[1.0])
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 4 * 20 * 16)
    pieces = fit_logistic(features, labels, n_classes=3, strengths=[1.0])
    assert pieces.objectives == pytest.approx(whole.objectives, abs=1e-6)


def test_too_many_features_to_rotate_reach_the_same_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = problem(200, 20, 3)
    for standardise in (False, True):
        rotated = fit_logistic(
            features, labels, n_classes=3, strengths=STRENGTHS, standardise=standardise
        )
        with monkeypatch.context() as patch:
            patch.setattr(logistic, "MAX_ROTATED", 0)
            scaled = fit_logistic(
                features, labels, n_classes=3, strengths=STRENGTHS, standardise=standardise
            )
        assert scaled.objectives == pytest.approx(rotated.objectives, abs=1e-5)


def test_constant_features_change_nothing() -> None:
    features, labels = problem(200, 5, 3)
    constant = np.full((200, 3), 7.3, np.float32)
    padded = np.concatenate([features, constant], axis=1)
    for standardise in (False, True):
        with_constant = fit_logistic(
            padded, labels, n_classes=3, strengths=[1.0], standardise=standardise
        )
        without = fit_logistic(
            features, labels, n_classes=3, strengths=[1.0], standardise=standardise
        )
        assert with_constant.objectives == pytest.approx(without.objectives, abs=1e-6)
        assert np.abs(with_constant.weights[0][:, 5:]).max() < 1e-4


def test_features_without_information_give_the_class_shares() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 70])
    fit = fit_logistic(np.ones((100, 4), np.float32), labels, n_classes=3, strengths=[1.0])
    scores = fit.weights[0] @ np.ones(4) + fit.biases[0]
    shares = np.exp(scores) / np.exp(scores).sum()
    assert shares == pytest.approx([0.1, 0.2, 0.7], abs=1e-3)


def test_separable_classes_converge() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = (rng.normal(size=(40, 3)) + 20 * labels[:, None]).astype(np.float32)
    fit = fit_logistic(features, labels, n_classes=2, strengths=[1e4])
    assert fit.converged.all()
    assert ((features @ fit.weights[0].T + fit.biases[0]).argmax(axis=1) == labels).all()


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = problem(50, 5, 3)
    features[3, 2] = np.nan
    with pytest.raises(UserError, match="not a finite number"):
        fit_logistic(features, labels, n_classes=3, strengths=[1.0])
