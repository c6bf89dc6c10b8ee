import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igpt.tokens.masks import bert_masks


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
