import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.networks import pixel_model

STARTS_WITHIN_S = 120


@pytest.fixture(scope="session")
def address(server):
    """Of the page of a small model."""
    return server[0]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page, served by the command itself: its address and the process's number."""
    pytest.importorskip("gradio", reason="the page needs Gradio")
    place = tmp_path_factory.mktemp("serve")
    folder = pixel_model(image_size=16).save(place / "tiny")
    port = 7900 + os.getpid() % 1000
    command = [sys.executable, "-m", "igpt", "serve", str(folder), "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(place / "uploads")}
    process = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)


def _wait_for(url, server):
    end_s = time.monotonic() + STARTS_WITHIN_S
    while True:
        assert server.poll() is None, "the server ended"
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < end_s, "the server does not answer"
            time.sleep(0.3)
