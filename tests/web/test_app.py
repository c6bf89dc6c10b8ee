"""The page as Gradio builds it."""

import numpy as np
import pytest

from igpt.errors import UserError
from tests.networks import pixel_model

gradio = pytest.importorskip("gradio", reason="the page needs Gradio")
pytestmark = pytest.mark.filterwarnings("ignore")

from igpt.web import app  # noqa: E402 - Gradio may not be there
from igpt.web.server import listen  # noqa: E402


def tabs_of(model):
    page = app.build(model, name="m")
    return [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]


def test_an_ar_model_has_three_tabs_and_a_fourth_with_a_probe():
    model = pixel_model()
    assert tabs_of(model) == ["Complete", "Sample", "Surprise"]
    weights = np.zeros((3, 16), np.float32)
    model.take_class_head(weights, ["cat", "dog", "hen"], protocol="none")
    assert tabs_of(model) == ["Complete", "Sample", "Surprise", "Classify"]


def test_a_bert_model_cannot_sample():
    assert tabs_of(pixel_model(objective="bert")) == ["Complete", "Surprise"]


def test_a_port_in_use_is_said_before_anything_is_loaded():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot serve on 127\.0\.0\.1:{port}: .*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--port"):
        listen("127.0.0.1", 99999)
