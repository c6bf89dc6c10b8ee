"""Likelihood against the definition, the simple models against counting by hand."""

import math
import zlib

import numpy as np
import pytest
import torch

from igpt.config import ModelConfig, Objective
from igpt.evaluation import likelihood as likelihood_module
from igpt.evaluation.likelihood import (
    Counts,
    bits_per_dim,
    bits_per_pixel,
    gzip_nats_per_token,
    image_nats,
    likelihood,
    token_surprise,
)
from igpt.model.gpt import GPT
from igpt.tokens.masks import own_masks

N, T, K = 9, 12, 5


def network(objective: Objective = "ar") -> GPT:
    model = GPT(
        ModelConfig(n_layer=2, n_head=2, n_embd=8), n_colors=K, seq_len=T, objective=objective
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.7, generator=generator)
    return model.eval()


def tokens(n: int = N, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, K, (n, T))


def test_surprise_is_minus_the_log_of_the_tokens_probability() -> None:
    model = network()
    found = token_surprise(model, tokens(), precision="fp32")
    assert found.shape == (N, T)
    probability = torch.softmax(model(torch.from_numpy(tokens())).double(), dim=-1).detach().numpy()
    for i in range(N):
        for t in range(T):
            assert found[i, t] == pytest.approx(
                -math.log(probability[i, t, tokens()[i, t]]), abs=1e-5
            )


def test_probabilities_of_all_images_add_up_to_one() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8), n_colors=3, seq_len=4)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    every = np.stack(np.meshgrid(*[range(3)] * 4), axis=-1).reshape(-1, 4)
    nats = token_surprise(model, every, precision="fp32").astype(np.float64)
    assert np.exp(-nats.sum(axis=1)).sum() == pytest.approx(1, abs=1e-5)


def test_bert_predicts_the_masked_tokens_only() -> None:
    model = network("bert")
    found = token_surprise(model, tokens(), mask_prob=0.4, mask_seed=3, precision="fp32")
    masked = own_masks(tokens(), seed=3, mask_prob=0.4)
    assert np.array_equal(~np.isnan(found), masked)
    logits = model(torch.from_numpy(tokens()), torch.from_numpy(masked)).detach()
    log_prob = torch.log_softmax(logits, dim=-1).numpy()
    for i in range(N):
        own = [-log_prob[i, t, tokens()[i, t]] for t in range(T) if masked[i, t]]
        if own:
            assert image_nats(found)[i] == pytest.approx(np.mean(own), abs=1e-5)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = token_surprise(network(), tokens(), precision="fp32")
    monkeypatch.setitem(likelihood_module.BATCH_LOGITS, "cpu", 2 * T * K)
    seen: list[int] = []
    pieces = token_surprise(network(), tokens(), precision="fp32", progress=seen.append)
    assert np.abs(whole - pieces).max() < 1e-5
    assert seen == [2, 2, 2, 2, 1]
    monkeypatch.setitem(likelihood_module.BATCH_LOGITS, "cpu", 1)  # one is always judged
    token_surprise(network(), tokens(), precision="fp32", progress=seen.append)
    assert seen[5:] == [1] * N


def test_image_without_a_predicted_token_is_nan() -> None:
    nats = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]], np.float32)
    assert np.array_equal(image_nats(nats), [2.0, np.nan], equal_nan=True)


def test_untrained_head_costs_the_log_of_the_colours() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8), n_colors=K, seq_len=T)
    model.init_weights(torch.Generator().manual_seed(0))
    result = likelihood(model, tokens(), tokens(20, seed=1), tokens_per_pixel=1)
    assert result.nats_per_token == pytest.approx(math.log(K), abs=1e-6)
    assert result.nats_per_token_se == pytest.approx(0, abs=1e-6)
    assert result.bits_per_pixel == pytest.approx(math.log2(K), abs=1e-6)
    assert result.bits_per_dim is None
    assert result.n_images == N


def test_the_mean_and_its_standard_error_are_over_images() -> None:
    model = network()
    nats = image_nats(token_surprise(model, tokens(), precision="fp32"))
    result = likelihood(model, tokens(), tokens(20, seed=1), tokens_per_pixel=1, precision="fp32")
    assert result.nats_per_token == pytest.approx(nats.mean(), rel=1e-6)
    assert result.nats_per_token_se == pytest.approx(nats.std() / N**0.5, rel=1e-6)
    counts = Counts.of(tokens(20, seed=1), n_colors=K, stride=1)
    assert result.unigram_nats_per_token == counts.unigram_nats(tokens())
    assert result.bigram_nats_per_token == counts.bigram_nats(tokens())
    assert result.gzip_nats_per_token == gzip_nats_per_token(tokens())
    alone = likelihood(model, tokens(), tokens(0), tokens_per_pixel=1, precision="fp32")
    assert (alone.unigram_nats_per_token, alone.bigram_nats_per_token) == (None, None)
    assert alone.nats_per_token == result.nats_per_token
    rounded = likelihood(model, tokens(), tokens(0), tokens_per_pixel=1, precision="bf16")
    assert 0 < abs(rounded.nats_per_token - result.nats_per_token) < 0.1


def test_bert_images_without_a_masked_token_are_left_out_of_the_mean() -> None:
    model = network("bert")
    judged, options = tokens(40), {"mask_prob": 0.05, "precision": "fp32"}
    nats = image_nats(token_surprise(model, judged, **options))  # type: ignore[arg-type]
    known = nats[~np.isnan(nats)]
    assert 0 < len(known) < 40
    result = likelihood(model, judged, tokens(2), tokens_per_pixel=1, **options)  # type: ignore[arg-type]
    assert result.n_images == len(known)
    assert result.nats_per_token == pytest.approx(known.mean(), rel=1e-6)


def test_bits_follow_from_nats() -> None:
    assert bits_per_pixel(math.log(2), tokens_per_pixel=1) == pytest.approx(1)
    assert bits_per_dim(math.log(256), tokens_per_pixel=3) == pytest.approx(8)
    assert bits_per_dim(2.0895, tokens_per_pixel=1) == pytest.approx(1.0048, abs=1e-4)  # iGPT-S


def test_raw_tokens_have_bits_per_dimension() -> None:
    result = likelihood(network(), tokens(), tokens(20, seed=1), tokens_per_pixel=3)
    assert result.bits_per_dim == pytest.approx(result.nats_per_token / math.log(2))
    assert result.bits_per_pixel == pytest.approx(3 * result.nats_per_token / math.log(2))


def test_bert_has_a_loss_but_no_bits() -> None:
    result = likelihood(network("bert"), tokens(), tokens(20, seed=1), tokens_per_pixel=1)
    assert result.nats_per_token > 0
    assert result.bits_per_pixel is None
    assert result.bits_per_dim is None


@pytest.mark.parametrize("stride", [1, 3])
def test_simple_models_equal_counting_by_hand(stride: int) -> None:
    train, judged = tokens(30, seed=1), tokens(4, seed=2)
    counts = Counts.of(train, n_colors=K, stride=stride)
    single = {k: 1 + int((train == k).sum()) for k in range(K)}
    total = sum(single.values())
    pairs = {(a, b): 1 for a in range(K) for b in range(K)}
    for row in train.tolist():
        for before, after in zip(row, row[stride:], strict=False):
            pairs[before, after] += 1
    unigram, bigram = [], []
    for row in judged.tolist():
        for t, token in enumerate(row):
            unigram.append(-math.log(single[token] / total))
            if t < stride:
                bigram.append(unigram[-1])
            else:
                before = row[t - stride]
                seen = sum(pairs[before, k] for k in range(K))
                bigram.append(-math.log(pairs[before, token] / seen))
    assert counts.unigram_nats(judged) == pytest.approx(np.mean(unigram))
    assert counts.bigram_nats(judged) == pytest.approx(np.mean(bigram))


def test_pairs_of_very_many_colours_are_not_counted() -> None:
    counts = Counts.of(np.zeros((2, 4), np.int64), n_colors=5000, stride=1)
    assert counts.bigram_nats(np.zeros((1, 4), np.int64)) is None
    assert counts.unigram_nats(np.zeros((1, 4), np.int64)) == pytest.approx(math.log(5008 / 9))


def test_more_images_than_are_read_at_once_are_all_counted() -> None:
    train = np.arange(5000)[:, None] * np.ones((1, 4), np.int64) % 7  # 7 colours, rows of one
    counts = Counts.of(train, n_colors=7, stride=1)
    flat = np.bincount(train.reshape(-1), minlength=7) + 1
    assert counts.unigram_nats(train) == pytest.approx(
        -np.log(flat / flat.sum())[train].mean(), rel=1e-12
    )
    rows = np.bincount(train[:, 0], minlength=7)
    assert counts.bigram_nats(train[:, :2]) == pytest.approx(
        (
            -np.log(flat / flat.sum())[train[:, 0]]
            - np.log((3 * rows + 1) / (3 * rows + 7))[train[:, 0]]
        ).mean()
        / 2,
        rel=1e-12,
    )
    size = len(zlib.compress(train.astype("<u2").tobytes(), 9)) - 6  # its header and checksum
    assert gzip_nats_per_token(train) == pytest.approx(8 * size * math.log(2) / 20_000, rel=0.05)


def test_gzip_counts_bits_a_token() -> None:
    tokens = np.random.default_rng(0).integers(0, 256, (50, 100))
    size = len(zlib.compress(tokens.astype("<u2").tobytes(), 9))
    expected = 8 * size * math.log(2) / tokens.size
    assert gzip_nats_per_token(tokens) == pytest.approx(expected, rel=0.01)
    assert gzip_nats_per_token(tokens) == pytest.approx(math.log(256), rel=0.35)
    assert gzip_nats_per_token(np.zeros((50, 100), int)) < 0.1
