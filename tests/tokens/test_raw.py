import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from igpt.errors import UserError
from igpt.tokens.tokenizer import RawTokens

RAW = RawTokens()


@given(st.integers(1, 5).flatmap(lambda side: hnp.arrays(np.uint8, (2, side, side, 3))))
def test_nothing_is_lost(images):
    tokens = RAW.encode(images)
    assert tokens.shape == (2, images[0].size)
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(RAW.decode(tokens), images)
    np.testing.assert_array_equal(RAW.encode_compact(images), tokens)


def test_channels_of_a_pixel_follow_one_another():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert RAW.encode(image).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 16), np.int64), "16 tokens make no square image"),
        (np.zeros((1, 14), np.int64), "14 tokens make no square image"),
        (np.full((1, 12), 256), "must lie in 0 to 255"),
    ],
)
def test_decode_refuses(tokens, message):
    with pytest.raises(UserError, match=message):
        RAW.decode(tokens)


def test_encode_refuses_other_types():
    with pytest.raises(UserError, match="not uint8"):
        RAW.encode(np.zeros((2, 2, 3)))
