import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.web.answers import Canvas

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
KEEP = RNG.random((4, 4)) < 0.5


def test_a_canvas_comes_back_as_it_went():
    back = Canvas.parse(Canvas(PIXELS, KEEP).dump(), 4)
    np.testing.assert_array_equal(back.pixels, PIXELS)
    np.testing.assert_array_equal(back.keep, KEEP)


@pytest.mark.parametrize("text", [None, ""])
def test_without_a_picture_one_is_asked_for(text):
    with pytest.raises(UserError, match="upload one or pick an example"):
        Canvas.parse(text, 4)


def test_a_picture_of_another_models_size_is_refused():
    with pytest.raises(UserError, match="damaged: upload it again"):
        Canvas.parse(Canvas(PIXELS, KEEP).dump(), 5)


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": "!!"},
        {"pixels": None},
        {"pixels": base64.b64encode(b"abc").decode()},
        {"hidden": "2" * 16},
        {"hidden": "0"},
        {"hidden": ["0"] * 16},
    ],
)
def test_a_changed_canvas_is_refused(change):
    value = json.loads(Canvas(PIXELS, KEEP).dump()) | change
    with pytest.raises(UserError, match="damaged"):
        Canvas.parse(json.dumps(value), 4)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_nothing_that_a_browser_sends_is_more_than_refused(text):
    with pytest.raises(UserError):
        Canvas.parse(text, 4)
