"""The large probe: its sums against a plain solution, its figures against the exact path."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import igpt
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.probing import large
from igpt.probing.exact import Seen, probe_model
from igpt.probing.large import Moments, choose_layer, finalists, plan_large, probe_large
from igpt.probing.protocol import LayerScore, best_score
from igpt.probing.solve import Solver
from igpt.train.distributed import ALONE

SEEN: Seen = {"normalised": True, "pooling": "mean", "precision": "fp32"}


@pytest.fixture(scope="module")
def model() -> igpt.PixelModel:
    return igpt.load("cifar10-small")


@pytest.fixture(scope="module")
def some(model: igpt.PixelModel) -> PackedSet:
    from igpt.images.prepare import open_data

    return open_data("digits", image_size=model.image_size).at_most(120)


def test_ridge_of_added_sums_is_that_of_all_images_at_once() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = (rng.normal(size=(2, 90, 6)) * [1, 5, 0.1, 1, 1, 0] + 4).astype(np.float32)
    features[1] += labels[:, None]
    sums = Moments(2, 6, 3, torch.device("cpu"))
    for rows in (slice(0, 50), slice(50, 90)):
        sums.add(features[:, rows], labels[rows])
    weights, biases = sums.ridge()
    targets = np.eye(3)[labels]
    for layer in range(2):
        x = features[layer].astype(np.float64)
        spread = np.where(x.std(0) > 1e-5, x.std(0), 1)
        scaled = (x - x.mean(0)) / spread
        for share, w, b in zip(large.SHARES, weights[layer], biases[layer], strict=True):
            plain = Ridge(alpha=share * 90).fit(scaled, targets)
            assert np.abs(plain.predict(scaled) - (x @ w.T + b)).max() < 1e-4


def test_features_that_come_in_pieces_are_added_and_judged_like_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 50, 6)).astype(np.float32)
    codes = rng.integers(0, 3, 50)
    whole = Moments(2, 6, 3, torch.device("cpu"))
    whole.add(features, codes)
    weights, biases = whole.ridge()
    monkeypatch.setattr(large, "ADDED_ROWS", 16)
    pieces = Moments(2, 6, 3, torch.device("cpu"))
    adding = large._Adding(pieces, codes, ALONE)
    present = np.array([4, 5, 9])
    judging = large._Judging((weights, biases), present[codes], present, torch.device("cpu"), ALONE)
    for first in range(0, 50, 7):
        rows = slice(first, min(first + 7, 50))
        adding[:, rows] = features[:, rows]
        judging[:, rows] = features[:, rows]
    for one, other in zip(pieces.ridge(), (weights, biases), strict=True):
        assert np.abs(one - other).max() < 1e-5
    for layer, share in np.ndindex(2, len(large.SHARES)):
        scores = features[layer] @ weights[layer, share].T + biases[layer, share]
        assert judging.right[layer, share] == (scores.argmax(1) == codes).sum()


def test_the_three_best_layers_are_fitted_in_their_order() -> None:
    shares = (0.1, 0.5, 0.4, 0.2, 0.6)
    scores = [
        LayerScore(layer=i, strength=1.0, valid_accuracy=share, valid_loss_nats=0.0)
        for i, share in enumerate(shares)
    ]
    assert finalists(scores) == [1, 2, 4]


@pytest.mark.slow
def test_figures_are_near_those_of_the_exact_path(model: igpt.PixelModel, some: PackedSet) -> None:
    exact = probe_model(model, some, precision="fp32", n_joined=3, raw_pixels=True, save=False)
    found = probe_large(model, some, seen=SEEN, n_joined=3, solver=Solver(), save=False)
    assert found.keys() - {"layer_rule", "finalists"} == exact.keys()
    assert found["raw_pixels"] == exact["raw_pixels"]
    assert len(found["by_layer"]) == len(exact["by_layer"])
    assert len(found["joined"]["layers"]) == 3
    assert found["layer_rule"].endswith("ridge regression on 120 training images")
    assert abs(found["layer"] - exact["layer"]) <= 1
    assert found["layer"] in {score["layer"] for score in found["finalists"]}
    same = next(s for s in exact["by_layer"] if s["layer"] == found["layer"])
    assert found["valid_accuracy"] == pytest.approx(same["valid_accuracy"], abs=0.02)
    assert not list((large.files.cache_folder() / "features").glob("large-*"))


def test_the_layer_that_knows_more_is_chosen(model: igpt.PixelModel, some: PackedSet) -> None:
    scores = choose_layer(model, some, seen=SEEN, layer_images=100)
    assert len(scores) == model.network.config.n_layer + 1
    assert best_score(scores).valid_accuracy > scores[0].valid_accuracy


def test_a_plan_says_what_it_takes(model: igpt.PixelModel, some: PackedSet) -> None:
    plan = plan_large(model, some, seen=SEEN, n_joined=5, layer_images=0, solver=Solver(name="sgd"))
    assert plan.layer_images == some.n("train")
    n = sum(some.n(split) for split in ("train", "valid", "test"))
    assert plan.disk_bytes == 2 * n * 7 * 192
    assert plan.solver == "sgd" and plan.fitting_bytes == 0
    assert len(plan.lines()) == 4
    # Seven layers of 192 features and the bias, ten classes, five penalties.
    assert plan.choosing_bytes == 8 * 7 * 193 * (193 + 10) + 4 * 7 * 5 * 10 * 192
    exact = plan_large(model, some, seen=SEEN, n_joined=2, layer_images=9, solver=Solver())
    assert (exact.solver, exact.layer_images) == ("lbfgs", 9)
    assert exact.fitting_bytes == 2 * 4 * (some.n("train") + some.n("valid")) * (2 * 192 + 1)
    assert exact.disk_bytes == 2 * n * 4 * 192  # three layers, and the one beside the best
    alone = plan_large(model, some, seen=SEEN, n_joined=0, layer_images=9, solver=Solver())
    assert alone.disk_bytes == 2 * n * 3 * 192
    assert 0 < alone.forward_s < plan.forward_s


def test_where_the_optimum_does_not_fit_sgd_does(
    model: igpt.PixelModel, some: PackedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large.compute, "free_memory_bytes", lambda device: 1000)
    options = {"seen": SEEN, "n_joined": 0, "layer_images": 0, "solver": Solver()}
    assert plan_large(model, some, **options).solver == "sgd"  # type: ignore[arg-type]


def test_a_disk_that_is_too_small_is_said_before_the_work(
    model: igpt.PixelModel, some: PackedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda place: full)
    with pytest.raises(UserError, match="GB free and the features kept of some layers take"):
        probe_large(model, some, seen=SEEN, solver=Solver(), save=False)


AT_SIZE = """
import resource, sys, time
import numpy as np, torch
from igpt.probing.large import Moments, _Adding
from igpt.probing.protocol import Labelled
from igpt.probing.solve import Solver, fit
from igpt.train.distributed import ALONE
n, n_layers, width, n_classes = int(sys.argv[1]), 25, 512, 10
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, rng = peak(), np.random.default_rng(0)
labels = rng.integers(0, n_classes, n)
centres = rng.normal(size=(n_classes, width)).astype(np.float32) / 8
sums = Moments(n_layers, width, n_classes, torch.device("cpu"))
adding, began = _Adding(sums, labels, ALONE), time.monotonic()
for start in range(0, n, 16):
    rows = slice(start, min(start + 16, n))
    x = rng.standard_normal((rows.stop - start, width), np.float32) + centres[labels[rows]]
    adding[:, rows] = np.broadcast_to(x, (n_layers, *x.shape)).copy()
sums.ridge()
ranked, chosen_s = peak() - before, time.monotonic() - began
sizes = (n, n // 10, n // 10)
splits = []
for i, size in enumerate(sizes):
    held = np.lib.format.open_memmap(f"{sys.argv[2]}/{i}.npy", "w+", np.float16, (3, size, width))
    for row in held:
        row[:] = rng.standard_normal((size, width), np.float32) + centres[labels[:size]]
    splits.append(Labelled(held, labels[:size]))
found = fit(*splits, layers=[11, 12, 13], solver=Solver())
print(ranked, peak() - before, chosen_s, time.monotonic() - began, found.result.test_accuracy)
"""


@pytest.mark.slow
def test_memory_at_50000_images_25_layers_is_below_1_5_gb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}
    for n in (10_000, 50_000):
        words = [sys.executable, "-c", AT_SIZE, str(n), str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        told[n] = [float(word) for word in done.stdout.split()]
    with capsys.disabled():
        print(f"\nlarge probe, D 512, 25 layers (bytes ranking, in all; s ranking, in all): {told}")
    assert told[50_000][1] < 1.5e9
    assert told[50_000][0] < 1.2 * told[10_000][0] + 2e7  # the ranking's memory is flat
