"""The page as Gradio builds it."""

import subprocess
import sys

import pytest

from igpt.errors import UserError

gradio = pytest.importorskip("gradio", reason="the page needs Gradio")
pytestmark = pytest.mark.filterwarnings("ignore")

from igpt.web.app import listen  # noqa: E402 - Gradio may not be there

# In a process of its own: Gradio leaves event loops unclosed, which pytest would count.
TABS = """
import gradio
import numpy as np
from pathlib import Path
from igpt.web.app import build
from igpt.web.gate import Uploads
from tests.networks import pixel_model

def tabs_of(model):
    blocks = build(model, name="m", uploads=Uploads(Path("nowhere"))).blocks.values()
    return " ".join(block.label for block in blocks if isinstance(block, gradio.Tab))

model = pixel_model()
print(tabs_of(model))
model.take_class_head(np.zeros((3, 16), np.float32), ["cat", "dog", "hen"], protocol="none")
print(tabs_of(model))
print(tabs_of(pixel_model(objective="bert")))
"""


@pytest.mark.slow
def test_each_kind_of_model_has_the_tabs_that_it_can_answer():
    command = [sys.executable, "-W", "ignore", "-c", TABS]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [
        "Complete Sample Surprise",
        "Complete Sample Surprise Classify",
        "Complete Surprise",
    ]


def test_a_port_in_use_is_said_before_anything_is_loaded():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot serve on 127\.0\.0\.1:{port}: .*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--port"):
        listen("127.0.0.1", 99999)
