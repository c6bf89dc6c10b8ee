import math

import pytest

from igpt.jobs.search import Trial, best, rates, search


def outcomes(losses):
    """A stand-in for training: loss by learning rate; none: diverged."""
    return lambda lr: Trial(lr=lr, valid_nats=losses[lr], run=f"lr-{lr:g}")


def test_rates_are_those_of_the_paper_in_its_order():
    assert list(rates())[:6] == [0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003]
    assert min(rates()) == 1e-6


def test_the_search_stops_when_the_loss_rises_and_the_lowest_is_best():
    losses = {0.01: 2.5, 0.003: 2.2, 0.001: 2.3, 0.0003: 0.0}
    *_, trials = search(outcomes(losses))
    assert [trial.lr for trial in trials] == [0.01, 0.003, 0.001]
    assert best(trials).lr == 0.003


def test_runs_that_diverge_count_as_infinite_and_lower_rates_are_tried():
    losses = {0.01: None, 0.003: None, 0.001: 2.4, 0.0003: 2.6}
    *_, trials = search(outcomes(losses))
    assert [trial.loss for trial in trials] == [math.inf, math.inf, 2.4, 2.6]
    assert best(trials).lr == 0.001


def test_the_search_ends_at_the_lowest_rate():
    *_, trials = search(outcomes(dict.fromkeys(rates())))
    assert len(trials) == len(list(rates()))
    assert best(trials) is None


def test_every_trial_is_told_as_soon_as_it_is_known():
    losses = {0.01: 2.5, 0.003: 2.6}
    assert [len(trials) for trials in search(outcomes(losses))] == [1, 2]


@pytest.mark.parametrize("loss", [2.0, None])
def test_one_trial_never_ends_a_search(loss):
    first, second = search(outcomes({0.01: loss, 0.003: 3.0 if loss else 2.0})), None
    assert len(next(first)) == 1
    second = next(first)
    assert len(second) == 2
