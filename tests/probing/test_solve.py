"""What fits a probe: sgd and knn against plain computations, one way in for all features."""

from typing import Any

import numpy as np
import pytest
import torch

from igpt.errors import UserError
from igpt.model.head import voted_accuracy
from igpt.probing import solve
from igpt.probing.protocol import Labelled, Lazy, probe_layers
from igpt.probing.solve import RATES, Solver, SolverName, descend, fit, neighbours


def split(n: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(0).normal(size=(4, 10))
    features = 0.2 * (0.8 * centres[labels] + rng.normal(size=(n, 10)))
    return Labelled(features[None].astype(np.float32), labels + 3)


def sgd(steps: int) -> Solver:
    return Solver(name="sgd", sgd_steps=steps)


def test_sgd_comes_near_the_accuracy_of_the_exact_optimum() -> None:
    splits = split(1000, 1), split(300, 2), split(500, 3)
    found = fit(*splits, layers=[4], solver=sgd(120))
    exact, _, _ = probe_layers(*splits, layers=[4])
    assert found.result.test_accuracy > exact.test_accuracy - 0.03
    assert found.weights is not None and found.weights.shape == (4, 10)
    assert found.biases is not None and found.biases.shape == (4,)
    assert (found.result.layer, found.result.labels) == (4, (3, 4, 5, 6))
    assert found.result.strength in RATES
    assert (found.result.n_train, found.result.n_valid, found.result.n_test) == (1000, 300, 500)


def test_all_rates_in_one_pass_are_torch_s_sgd_one_rate_at_a_time() -> None:
    train = split(50, 1)
    codes = train.labels - 3
    solver = Solver(name="sgd", sgd_steps=30, batch_size=8)
    weights, biases = descend([train.features[0]], codes, [3.0, 0.3], solver)
    order = solve.BatchStream(
        np.arange(50)[:, None], None, None, batch_size=8, seed=0, name="sgd-probe"
    )
    for lr, w, b in zip((3.0, 0.3), weights, biases, strict=True):
        head = torch.nn.Linear(10, 4)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        plain = torch.optim.SGD(head.parameters(), lr, momentum=0.9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(plain, 30)
        for step in range(30):
            rows = order.at(step).ids
            scores = head(torch.from_numpy(train.features[0][rows]))
            loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(codes[rows]))
            plain.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            plain.step()
            cosine.step()
        assert np.abs(head.weight.detach().numpy() - w).max() < 1e-4
        assert np.abs(head.bias.detach().numpy() - b).max() < 1e-4


@pytest.mark.parametrize("solver", [sgd(40), Solver(name="knn"), Solver()])
def test_layer_that_knows_the_classes_is_chosen_and_test_labels_choose_nothing(
    solver: Solver,
) -> None:
    rng = np.random.default_rng(5)
    train, valid, test = (
        Labelled(
            np.concatenate([rng.normal(size=part.features.shape), part.features]).astype("f4"),
            part.labels,
        )
        for part in (split(300, 1), split(100, 2), split(100, 3))
    )
    shuffled = Labelled(test.features, np.roll(test.labels, 1))
    one = fit(train, valid, test, layers=[0, 1], solver=solver)
    other = fit(train, valid, shuffled, layers=[0, 1], solver=solver)
    assert one.result.layer == 1
    assert one.result.by_layer == other.result.by_layer
    assert one.weights is None or np.array_equal(one.weights, other.weights)
    assert one.result.test_accuracy > other.result.test_accuracy


@pytest.mark.parametrize("solver", [sgd(20), Solver(name="knn"), Solver()])
def test_features_made_as_they_are_read_are_fitted_like_an_array(solver: Solver) -> None:
    splits = split(200, 1), split(60, 2), split(50, 3)
    lazy = [
        Labelled(Lazy(lambda rows, part=part: part.features[0][rows], n, 10), part.labels)
        for part, n in zip(splits, (200, 60, 50), strict=True)
    ]
    ready, read = (fit(*given, layers=[0], solver=solver) for given in (splits, lazy))
    assert ready.result == read.result


def test_both_splits_are_fitted_in_the_end() -> None:
    parts = [np.arange(6.0)[:, None], np.arange(6.0, 10.0)[:, None]]
    chosen = np.array([0, 5, 6, 9])
    assert solve.gathered(parts, chosen)[:, 0].tolist() == chosen.tolist()


def test_rates_that_all_explode_are_refused() -> None:
    huge = Labelled(split(50, 1).features * 1e30, split(50, 1).labels)
    with pytest.raises(UserError, match="no rate"):
        fit(huge, huge, huge, layers=[0], solver=sgd(5))


def test_a_rate_that_explodes_in_the_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, plain = (split(200, 1), split(60, 2), split(50, 3)), solve.descend

    def exploding(parts: list[np.ndarray], *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        weights, biases = plain(parts, *rest)
        return weights * (np.nan if len(parts) == 2 else 1), biases

    monkeypatch.setattr(solve, "descend", exploding)
    with pytest.raises(UserError, match="chosen on validation, exploded on train and validation"):
        fit(*splits, layers=[0], solver=sgd(5))


@pytest.mark.parametrize("name", ["sgd", "knn"])
def test_labels_are_checked_and_layers_told_whatever_fits(name: SolverName) -> None:
    splits, told = [split(100, 1), split(60, 2), split(50, 3)], list[int]()
    fit(*splits, layers=[0], solver=Solver(name=name, sgd_steps=5), progress=told.append)
    assert told == [1]
    for place, said in enumerate(("train", "valid", "test")):
        broken = splits.copy()
        broken[place] = Labelled(splits[place].features, splits[place].labels[1:])
        with pytest.raises(UserError, match=f"{said} has"):
            fit(*broken, layers=[0], solver=Solver(name=name, sgd_steps=5))


def test_neighbours_vote_as_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "SCORED_ROWS", 7)  # several stretches of both
    known, asked = split(40, 1).features[0], split(11, 2).features[0]
    codes = split(40, 1).labels - 3
    answers = neighbours([known[:25], known[25:]], codes, asked, [1, 9, 500])
    for k, answer in zip((1, 9, 40), answers, strict=True):
        for query, found in zip(asked, answer, strict=True):
            cosines = known @ query / np.linalg.norm(known, axis=1) / np.linalg.norm(query)
            votes = np.zeros(4)
            for row in np.argsort(-cosines)[:k]:
                votes[codes[row]] += np.exp(cosines[row] / 0.07)
            assert found == votes.argmax()


def test_vote_over_masks_is_judged_by_the_modal_class() -> None:
    features = np.zeros((3, 2, 2), np.float32)
    features[:, :, 0] = [[1, 1], [1, -1], [-1, -1]]
    weights, biases = np.array([[-1.0, 0], [1.0, 0]]), np.zeros(2)
    present = np.array([5, 8])
    accuracy = voted_accuracy(
        features, np.array([8, 5]), weights=weights, biases=biases, present=present, seed=0
    )
    assert accuracy == 1.0
