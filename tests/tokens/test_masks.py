import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt import streams
from igpt.tokens.masks import bert_masks, own_masks


@given(st.integers(0, 2**40), st.integers(0, 10**7), st.integers(0, 20), st.integers(0, 20))
def test_a_slots_mask_does_not_depend_on_the_other_slots(seed, step, start, n):
    whole = bert_masks(seed, step, slots=range(40), seq_len=7, mask_prob=0.5)
    part = bert_masks(seed, step, slots=range(start, start + n), seq_len=7, mask_prob=0.5)
    assert part.shape == (n, 7)
    assert part.dtype == np.bool_
    np.testing.assert_array_equal(part, whole[start : start + n])


def test_share_of_hidden_positions_is_the_chance():
    masks = bert_masks(0, 3, slots=range(200), seq_len=1024, mask_prob=0.15)
    assert abs(masks.mean() - 0.15) < 0.003
    assert abs(masks.mean(axis=0) - 0.15).max() < 0.12  # no position is favoured


def test_seed_step_and_slot_each_change_the_mask():
    masks = [
        bert_masks(seed, step, slots=range(2), seq_len=64, mask_prob=0.5)
        for seed, step in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len({row.tobytes() for mask in masks for row in mask}) == 6


def test_an_images_own_mask_depends_on_its_tokens_and_the_seed_alone():
    images = np.random.default_rng(0).integers(0, 512, (5, 64))
    masks = own_masks(images, seed=3, mask_prob=0.5)
    assert len({row.tobytes() for row in masks}) == 5
    for order in ([4, 2], [1]):
        alone = own_masks(images[order].astype(np.uint16), seed=3, mask_prob=0.5)
        np.testing.assert_array_equal(alone, masks[order])
    assert not (own_masks(images, seed=4, mask_prob=0.5) == masks).all(axis=1).any()


def test_share_of_an_images_own_hidden_positions_is_the_chance():
    images = np.random.default_rng(0).integers(0, 512, (200, 1024))
    masks = own_masks(images, seed=0, mask_prob=0.15)
    assert masks.shape == (200, 1024) and masks.dtype == np.bool_
    assert abs(masks.mean() - 0.15) < 0.003
    assert abs(masks.mean(axis=0) - 0.15).max() < 0.12  # no position is favoured


def test_own_masks_are_those_that_reported_figures_were_measured_with():
    hidden = own_masks(np.arange(32).reshape(2, 16), seed=7, mask_prob=0.25)
    assert [np.flatnonzero(row).tolist() for row in hidden] == [[1, 4, 5, 7, 9], [4, 9, 15]]


def test_chance_0_hides_nothing_and_chance_1_everything(monkeypatch: pytest.MonkeyPatch):
    class Lowest:
        """Draws the least of [0, 1) each time."""

        def random(self, out: np.ndarray) -> None:
            out[:] = 0.0

    monkeypatch.setattr(streams, "stream", lambda *_, **__: Lowest())
    images = np.zeros((2, 5), np.int64)
    for chance in (0.0, 1.0):
        hidden = bert_masks(0, 0, slots=range(2), seq_len=5, mask_prob=chance)
        assert (hidden == bool(chance)).all()
        assert (own_masks(images, seed=0, mask_prob=chance) == bool(chance)).all()
