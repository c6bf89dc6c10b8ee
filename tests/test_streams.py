import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igpt import streams

names = st.tuples(
    st.integers(0, 2**40),
    st.sampled_from(["a", "b", "mask"]),
    st.integers(-1, 10**9),
    st.integers(0, 10**6),
)


@given(names)
def test_same_names_give_the_same_draws(name):
    first, second = (streams.stream(*name).random(4) for _ in range(2))
    assert np.array_equal(first, second)


@given(names, names)
def test_other_names_give_other_draws(one, other):
    if one != other:
        assert not np.array_equal(streams.stream(*one).random(4), streams.stream(*other).random(4))


def test_keys_do_not_change_between_versions():
    # Written down when the format was fixed: a change would break the resuming of old runs.
    assert streams.key_of(0, "init") == 0x3B458C66454C7BBECE9A8156A73FC6F8
    assert streams.stream(7, "order", 3, 1).random() == 0.4722393243934544
    assert 0 <= streams.torch_seed(1, "x") < 2**63


def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    streams.stream(3, "x").random(100)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
