import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.networks import pixel_model

STARTS_WITHIN_S = 60


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """The page of a small model, served by the command itself."""
    pytest.importorskip("gradio", reason="the page needs Gradio")
    place = tmp_path_factory.mktemp("serve")
    folder = pixel_model(image_size=16).save(place / "tiny")
    port = 7900 + os.getpid() % 1000
    command = [sys.executable, "-m", "igpt", "serve", str(folder), "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(place / "uploads")}
    server = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=20)


def _wait_for(url, server):
    end_s = time.monotonic() + STARTS_WITHIN_S
    while True:
        assert server.poll() is None, "the server ended"
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < end_s, "the server does not answer"
            time.sleep(0.3)
