import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.tokens.order import shuffled


def order(n, *, seed=0, name="train", epoch=0):
    return shuffled(np.arange(n), n, seed=seed, name=name, epoch=epoch)


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_each_image_comes_once(n, seed, epoch):
    np.testing.assert_array_equal(np.sort(order(n, seed=seed, epoch=epoch)), np.arange(n))


@pytest.mark.parametrize("n", [1 << 16, (1 << 16) + 1, 45_000, 300_007, 999_999])
def test_each_image_of_a_large_set_comes_once(n):
    assert np.bincount(order(n), minlength=n).tolist() == [1] * n


@given(n=st.integers(1, 10**12), data=st.data())
def test_a_place_can_be_asked_for_alone(n, data):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8)))
    together = shuffled(places, n, seed=1, name="a", epoch=2)
    alone = [int(shuffled(np.array([p]), n, seed=1, name="a", epoch=2)[0]) for p in places]
    assert together.tolist() == alone
    assert all(0 <= image < n for image in alone)


def test_a_hundred_million_images_do_not_collide():
    places = np.unique(np.random.default_rng(0).integers(0, 10**8, 10**6))
    images = shuffled(places, 10**8, seed=0, name="web", epoch=3)
    assert len(np.unique(images)) == len(places)


def test_seed_name_and_epoch_each_change_the_order():
    orders = [order(500), order(500, seed=1), order(500, name="b"), order(500, epoch=1)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 10


def test_order_looks_random():
    """Pairs of neighbours, and a place's image from epoch to epoch, fall evenly into 16 parts."""
    n, parts = 45_000, 16
    found = order(n)
    pairs = np.histogram2d(found[:-1], found[1:], bins=parts)[0]
    assert chi_square(pairs) < 1.4
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.02
    epochs = np.stack([order(n, epoch=epoch) for epoch in range(2)])
    assert chi_square(np.histogram2d(*epochs, bins=parts)[0]) < 1.4
    assert (epochs[0] == epochs[1]).sum() < 8


def test_small_sets_reach_every_order():
    found = {tuple(order(4, epoch=epoch).tolist()) for epoch in range(600)}
    assert len(found) == 24


def chi_square(table):
    """Its value for even counts over its degrees of freedom: about 1 for random ones."""
    mean = table.mean()
    return ((table - mean) ** 2 / mean).sum() / (table.size - 1)
