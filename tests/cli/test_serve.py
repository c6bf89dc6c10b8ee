"""`igpt serve`, as far as it is refused; the page itself is tested in tests/web."""

import importlib.util
import socket

import pytest

from tests.cli.test_main import run
from tests.networks import pixel_model

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the page needs Gradio"
)
pytestmark = pytest.mark.filterwarnings("ignore")


def test_without_gradio_it_is_said_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = run(["serve", str(tmp_path)], capsys)
    assert status == 2
    assert err == "igpt: error: the page needs Gradio: pip install 'igpt[web]'\n"


@needs_gradio
def test_a_port_in_use_is_refused_in_one_line(tmp_path, capsys):
    folder = pixel_model().save(tmp_path / "tiny")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, _, err = run(["serve", str(folder), "--port", port], capsys)
    assert status == 2
    assert err.startswith(f"igpt: error: cannot serve on 127.0.0.1:{port}: ")
    assert err.endswith("choose another with --port\n") and err.count("\n") == 1


@needs_gradio
@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--port", "99999"], "--port is 99999: choose from 0 to 65535"),
        (["--host", "no such host"], "cannot serve on no such host:7860: "),
    ],
)
def test_addresses_that_cannot_be_are_refused_in_one_line(tmp_path, capsys, args, line):
    status, _, err = run(["serve", str(tmp_path), *args], capsys)
    assert status == 2 and line in err and err.count("\n") == 1


@needs_gradio
def test_what_is_no_model_is_refused_in_one_line(tmp_path, capsys):
    status, _, err = run(["serve", str(tmp_path / "none"), "--port", "0"], capsys)
    assert status == 2
    assert "is neither a run nor a model folder" in err and err.count("\n") == 1
