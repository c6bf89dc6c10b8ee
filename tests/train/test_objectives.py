import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.train.objectives import loss_count, loss_sum
from tests.strategies import lively_gpt, random_tokens


def brute_force(logits, tokens, masked):
    """Sum and count by loops in float64."""
    total, count = 0.0, 0
    for image in range(len(tokens)):
        nats = []
        for slot in range(tokens.shape[1]):
            if masked is None or masked[image, slot]:
                row = logits[image, slot].astype(np.float64)
                nats.append(math.log(np.exp(row).sum()) - row[tokens[image, slot]])
        if masked is None:
            total, count = total + sum(nats), count + len(nats)
        elif nats:
            total, count = total + sum(nats) / len(nats), count + 1
    return total, count


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), mask_prob=st.sampled_from([None, 0.05, 0.3, 0.9]))
def test_losses_equal_brute_force_empty_masks_included(seed, mask_prob):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, 6, 7)).astype(np.float32)
    tokens = rng.integers(0, 7, (5, 6))
    masked = None if mask_prob is None else rng.random((5, 6)) < mask_prob
    total, count = brute_force(logits, tokens, masked)
    as_tensor = None if masked is None else torch.from_numpy(masked)
    objective = "ar" if masked is None else "bert"
    found = loss_sum(torch.from_numpy(logits), torch.from_numpy(tokens), as_tensor)
    assert found.item() == pytest.approx(total, rel=1e-5, abs=1e-6)
    assert loss_count(objective, torch.from_numpy(tokens), as_tensor) == count


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), objective=st.sampled_from(["ar", "bert"]))
def test_gradients_equal_float64(seed, objective):
    tokens = random_tokens(lively_gpt(seq_len=9), 3, seed=seed)
    masked = None
    if objective == "bert":
        masked = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) < 0.4
    gradients = []
    for dtype in (torch.float32, torch.float64):
        network = lively_gpt(seq_len=9, objective=objective, seed=seed).to(dtype)
        logits = network(tokens, masked)
        log_p = logits.double().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if dtype == torch.float32:
            loss = loss_sum(logits, tokens, masked)
        elif masked is None:
            loss = -log_p.sum()
        else:
            loss = -sum(row[m].mean() for row, m in zip(log_p, masked, strict=True) if m.any())
        loss.backward()
        gradients.append({n: p.grad for n, p in network.named_parameters()})
    for name, exact in gradients[1].items():
        gap = (gradients[0][name].double() - exact).norm() / exact.norm().clamp(min=1e-12)
        assert gap.item() < 1e-5, name


def test_bert_count_ignores_images_without_a_mask():
    masked = torch.tensor([[True, False], [False, False]])
    assert loss_count("bert", torch.zeros(2, 2, dtype=torch.int64), masked) == 1
    logits = torch.zeros(2, 2, 4)
    total = loss_sum(logits, torch.zeros(2, 2, dtype=torch.int64), masked)
    assert total.item() == pytest.approx(math.log(4))
