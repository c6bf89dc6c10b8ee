import math

import numpy as np
import pytest
import torch

from igpt.errors import UserError
from igpt.evaluation import likelihood
from igpt.evaluation.likelihood import _passes, token_surprise, whole_surprise
from tests.networks import network

TOKENS = np.random.default_rng(0).integers(0, 7, (5, 16))


def test_an_autoregressive_network_gives_the_likelihood():
    model = network()
    np.testing.assert_array_equal(
        whole_surprise(model, TOKENS, precision="fp32"),
        token_surprise(model, TOKENS, precision="fp32"),
    )


@pytest.mark.parametrize(("seq_len", "mask_prob", "n"), [(64, 0.15, 7), (4, 0.01, 4), (9, 0.9, 2)])
def test_passes_hide_every_position_once(seq_len, mask_prob, n):
    passes = np.stack(_passes(seq_len, mask_prob))
    assert len(passes) == n and (passes.sum(0) == 1).all()
    assert passes.sum(1).max() - passes.sum(1).min() <= 1


def test_a_bert_network_predicts_every_token_from_what_its_pass_shows():
    model = network(objective="bert")
    found = whole_surprise(model, TOKENS, mask_prob=0.3, precision="fp32")
    for hidden in _passes(16, 0.3):
        for i, row in enumerate(TOKENS):
            masked = torch.from_numpy(hidden[None])
            with torch.no_grad():
                logits = model(torch.from_numpy(row[None]), masked)[0].double()
            for t in np.flatnonzero(hidden):
                expected = -math.log(torch.softmax(logits[t], -1)[row[t]])
                assert found[i, t] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_an_images_surprise_does_not_depend_on_its_place(objective):
    model = network(objective=objective)
    together = whole_surprise(model, TOKENS, precision="fp32")
    seen = []
    alone = whole_surprise(model, TOKENS[3:4], precision="fp32", progress=seen.append)
    np.testing.assert_allclose(alone[0], together[3], atol=1e-5)
    assert seen == [1]


def test_batches_change_nothing(monkeypatch):
    model = network(objective="bert")
    whole = whole_surprise(model, TOKENS, precision="fp32")
    for n_logits, sizes in ((2 * 16 * 7, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setitem(likelihood.BATCH_LOGITS, "cpu", n_logits)
        seen = []
        pieces = whole_surprise(model, TOKENS, precision="fp32", progress=seen.append)
        np.testing.assert_allclose(pieces, whole, atol=1e-5)
        assert seen == sizes


def test_tokens_of_another_length_are_refused():
    with pytest.raises(UserError, match="9 tokens, the network reads 16"):
        whole_surprise(network(objective="bert"), TOKENS[:, :9])


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_network_whose_logits_are_no_numbers_is_refused(objective):
    model = network(objective=objective)
    torch.nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        whole_surprise(model, TOKENS)
