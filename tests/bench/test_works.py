"""Each work at its smallest: what is measured is right, whatever the times."""

import numpy as np
import pytest
import torch

from igpt.bench import probe, sample, start
from igpt.bench.train import Size, bench_size, lively_network
from igpt.errors import UserError

TINY = Size(16, 24, 1, 3, 2)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setattr("igpt.bench.train.can_compile", lambda device: False)


def test_train_gives_a_row_for_each_peer():
    rows = bench_size(TINY, ["sketch", "mingpt"], torch.float32, repeats=2)
    assert [row.peer for row in rows] == ["sketch", "mingpt"]
    assert all(row.ratio > 0 and 0 < row.share_of_limit < 1 for row in rows)


def test_train_refuses_a_peer_that_computes_something_else(monkeypatch):
    class Wrong:
        is_ours = True
        module = torch.nn.Linear(1, 1)

    monkeypatch.setattr("igpt.bench.train.open_peer", lambda name, network: Wrong())
    monkeypatch.setattr("igpt.bench.train.peer_step", lambda *a: lambda: 100.0)
    with pytest.raises(UserError, match=r"wrong's loss lies .* times mean nothing"):
        bench_size(TINY, ["wrong"], torch.float32)


def test_sample_counts_the_bytes_that_must_be_read():
    network = lively_network(TINY, torch.device("cpu"))
    matrices = 24 * 24 * 12 + 24 * 3 + 24 + 512 * 24  # a block, its norms, ln_f and sos, the head
    size = 2 if sample.open_decoder(network).dtype == torch.bfloat16 else 4
    cached = sum(2 * 24 * filled for filled in (1, 2, 3))
    assert sample.read_bytes(network, 5, 3) == size * (3 * matrices + 5 * cached)


def test_sample_draws_only_what_is_asked_for(monkeypatch):
    network = lively_network(TINY, torch.device("cpu"))
    drawn = []
    real = sample.sampling
    monkeypatch.setattr(
        "igpt.bench.sample.sampling",
        lambda *a, **k: (drawn.append(float(p.fraction)) or p for p in real(*a, **k)),
    )
    sample.draw_tokens(network, 2, 4)
    assert len(drawn) == 4 and drawn[-1] == 4 / 16


def test_probe_compares_equal_optima():
    (row,) = probe.bench_images(200, 12, ["sklearn"], repeats=2)
    assert row.peer == "scikit-learn" and row.ratio > 0
    assert "25 layers" in row.row


def test_features_are_those_of_transformers_and_stop_at_the_last_layer():
    size = Size(64, 32, 3, 2, 4)
    (every,) = probe.bench_features(size, range(4), ["transformers"], n_batches=2, repeats=2)
    (one,) = probe.bench_features(size, [1], [], n_batches=2, repeats=2)
    assert every.peer == "transformers" and every.share_of_limit > 0 and one.peer == ""
    # Operations that are counted: three layers, and one.
    assert every.share_of_limit * every.ours_s > 2 * one.share_of_limit * one.ours_s


def test_features_refuse_a_peer_of_other_means(monkeypatch):
    means = probe._means
    monkeypatch.setattr(probe, "_means", lambda *a: [1 + mean for mean in means(*a)])
    with pytest.raises(UserError, match="features lie"):
        probe.bench_features(Size(64, 32, 1, 2, 2), [1], ["transformers"], n_batches=1, repeats=2)


def test_probe_refuses_a_worse_loss(monkeypatch):
    monkeypatch.setattr(probe, "_largest_gap", lambda *a: 0.5)
    with pytest.raises(UserError, match="above scikit-learn's"):
        probe.bench_images(100, 8, ["sklearn"])


def test_random_features_are_standardised_with_a_steep_spectrum():
    features, labels = probe.random_features(4000, 64, seed=0)
    np.testing.assert_allclose(features.std(0), 1, rtol=1e-4)
    assert set(labels) == set(range(10))
    variances = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    assert 1e-6 < variances[-1] / variances[0] < 1e-4


def test_start_measures_fresh_processes():
    rows = {row.row: row for row in start.bench_start([], quick=True, at_most_s=0)}
    assert min(rows["igpt --help"].ours_s, rows["import igpt"].ours_s) > 0
    # This process has torch in memory, and a child must not count that.
    assert 2**20 < rows["import igpt"].memory_bytes < 2**26
