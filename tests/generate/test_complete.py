import numpy as np
import pytest
import torch

from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.generate import sample
from igpt.generate.complete import (
    ROUNDS,
    any_in_cell,
    complete,
    completing,
    rows_kept,
)
from igpt.generate.sample import uniforms
from igpt.model.gpt import GPT
from tests.networks import drawn_without_cache, network

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 7, (3, 16))
HALF = rows_kept(4, 0.5).reshape(-1)
HOLES = RNG.random(16) < 0.5


@pytest.mark.parametrize("objective", ["ar", "bert"])
@pytest.mark.parametrize("keep", [HALF, HOLES, ~HALF])
def test_kept_pixels_stay_and_the_others_vary(objective, keep):
    model = network(objective=objective)
    found = complete(model, PICTURES, keep, n=4)
    assert found.shape == (3, 4, 16)
    np.testing.assert_array_equal(found[..., keep], np.repeat(PICTURES[:, None], 4, 1)[..., keep])
    assert (found[:, 0] != found[:, 1])[:, ~keep].any()


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_hidden_pixels_are_never_looked_at(objective):
    model = network(objective=objective)
    other = np.where(HOLES, PICTURES, 6 - PICTURES)
    np.testing.assert_array_equal(
        complete(model, other, HOLES, n=2), complete(model, PICTURES, HOLES, n=2)
    )


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_completion_does_not_depend_on_n_or_the_batch(objective):
    model = network(objective=objective)
    many = complete(model, PICTURES, HOLES, n=3)
    np.testing.assert_array_equal(complete(model, PICTURES, HOLES, n=3, batch_size=2), many)
    np.testing.assert_array_equal(complete(model, PICTURES, HOLES, n=1), many[:, :1])


def test_forced_pixels_are_seen_by_those_that_follow():
    model = network()
    uniform = uniforms(0, "complete", slots=[(0, 0)], seq_len=16)
    found = complete(model, PICTURES[:1], HOLES, precision="fp32")[0]
    for t in np.flatnonzero(~HOLES):
        with torch.no_grad():
            logits = model(torch.from_numpy(found))[0, t].double()
        cumulated = torch.softmax(logits, -1).cumsum(-1)
        assert int((cumulated <= uniform[0, t]).sum()) == found[0, t]


def test_completing_ends_where_complete_does():
    model = network()
    *_, end = completing(model, PICTURES, HOLES)
    np.testing.assert_array_equal(end.tokens.reshape(3, 1, 16), complete(model, PICTURES, HOLES))


def test_nothing_is_computed_after_the_last_hidden_pixel():
    keep = np.ones(16, bool)
    keep[[3, 5]] = False
    steps = list(completing(network(), PICTURES, keep, batch_size=2))
    assert len(steps) == 2 * 3  # two batches of the tokens 3, 4 and 5
    assert steps[-1].fraction == 1


def test_completing_from_the_first_pixel_alone_equals_the_slow_way():
    model = network()
    keep = np.arange(16) == 0
    uniform = uniforms(0, "complete", slots=[(0, 0)], seq_len=16)
    free = drawn_without_cache(model, uniform, SampleConfig())
    found = complete(model, free, keep, precision="fp32")
    np.testing.assert_array_equal(found[0], free)


def test_bert_fills_about_equally_many_a_round():
    model = network(objective="bert", seq_len=100)
    keep = rows_kept(10, 0.3).reshape(-1)
    counts = [int(p.drawn.sum()) for p in completing(model, np.zeros((1, 100), int), keep)]
    assert len(counts) == ROUNDS and counts[-1] == 100
    assert set(np.diff([30, *counts])) <= {2, 3}


def test_bert_fills_pixels_of_equal_certainty_in_raster_order():
    model = network(objective="bert", seq_len=100)
    torch.nn.init.zeros_(model.head.weight)  # every colour is as likely everywhere
    keep = rows_kept(10, 0.3).reshape(-1)
    for progress in completing(model, np.zeros((1, 100), int), keep):
        n_drawn = int(progress.drawn.sum())
        np.testing.assert_array_equal(progress.drawn[0], np.arange(100) < n_drawn)


def test_bert_at_temperature_0_fills_the_most_certain_pixel_with_its_likeliest_colour():
    model = network(objective="bert")
    greedy = SampleConfig(temperature=0.0)
    steps = completing(model, PICTURES[:1], HOLES, config=greedy)
    progress = next(steps)
    masked = torch.from_numpy(~HOLES[None])
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.from_numpy(PICTURES[:1]), masked), -1)[0]
    certainty = probabilities.amax(-1).where(masked[0], -1.0)
    place = int(certainty.argmax())
    assert np.flatnonzero(progress.drawn[0] & ~HOLES).tolist() == [place]
    assert progress.tokens[0, place] == int(probabilities[place].argmax())


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0, -1.0, 2.0, float("nan"), float("inf")])
def test_keeping_no_row_or_every_row_is_refused(fraction):
    with pytest.raises(
        UserError, match=r"keep_rows .* (choose a share between|must be a finite number)"
    ):
        rows_kept(4, fraction)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (np.ones(16, bool), "keeps every pixel"),
        (np.zeros(16, bool), "keeps no pixel"),
    ],
)
def test_masks_of_no_use_are_refused(keep, message):
    with pytest.raises(UserError, match=message):
        complete(network(), PICTURES, keep)


def test_asking_for_no_completion_is_refused():
    with pytest.raises(UserError, match="n is 0"):
        complete(network(), PICTURES, HALF, n=0)


@pytest.mark.parametrize(("side", "size"), [(256, 16), (16, 16), (100, 7), (5, 8)])
def test_a_cell_is_drawn_anew_if_any_of_it_is_marked(side, size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        marks = np.zeros((side, side), bool)
        row, column = rng.integers(side, size=2)
        marks[row, column] = True
        cells = any_in_cell(marks, size)
        for i, j in np.ndindex(size, size):
            holds = (
                i * side < (row + 1) * size and row * size < (i + 1) * side
                and j * side < (column + 1) * size and column * size < (j + 1) * side
            )  # fmt: skip
            assert cells[i, j] == holds


def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures stand side by side each time a BERT network is asked."""
    seen: list[int] = []
    forward = GPT.forward

    def counted(self, tokens, *rest, **options):
        seen.append(len(tokens))
        return forward(self, tokens, *rest, **options)

    monkeypatch.setattr(GPT, "forward", counted)
    return seen


def test_no_more_pictures_stand_side_by_side_than_asked_for(monkeypatch):
    seen = batches_seen(monkeypatch)
    complete(network(objective="bert"), PICTURES, HOLES, n=3, batch_size=4)
    assert set(seen) == {4, 1}  # 9 completions


@pytest.mark.parametrize("n_colors", [7, 600])
def test_side_by_side_stand_as_many_as_memory_holds(n_colors, monkeypatch):
    model = network(objective="bert", n_colors=n_colors)
    # What must be there at once, of one picture: float32 logits and the hidden layer of an MLP.
    each = 4 * model.seq_len * (n_colors + 4 * model.config.n_embd)
    monkeypatch.setattr(sample, "free_memory_bytes", lambda _: 60 * each)
    seen = batches_seen(monkeypatch)
    complete(model, PICTURES[:1], HOLES, n=60)
    assert 3 <= max(seen) <= 30  # no more than half of it, nor needlessly few
