"""The page as a program sees it: many at once, clients that leave, uploads that are too much."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.web.answers import Canvas
from tests.networks import pixel_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("web")]

KEEP = np.arange(256).reshape(16, 16) < 200
PICTURE = Canvas(np.full((16, 16, 3), 90, np.uint8), KEEP).dump()


def call(address, name, *arguments):
    """Start a call; its address."""
    body = json.dumps({"data": arguments}).encode()
    headers = {"Content-Type": "application/json"}
    url = f"{address}/gradio_api/call/{name}"
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return f"{url}/{json.load(answer)['event_id']}"


def status_of(request):
    """The status of a request that is refused."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    refusal.value.close()
    return refusal.value.code


def events(url):
    """(kind, data) of a call's whole answer."""
    with urllib.request.urlopen(url, timeout=120) as answer:
        lines = answer.read().decode().split("\n\n")
    pairs = [line.split("\n", 1) for line in lines if line.startswith("event:")]
    return [(kind[7:], json.loads(data[6:])) for kind, data in pairs]


def test_fifty_completions_at_once_are_all_answered(address):
    def complete(seed):
        return events(call(address, "complete", PICTURE, 1, 1.0, seed))[-1]

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(complete, [0] * 25 + list(range(25))))
    assert [kind for kind, _ in answers] == ["complete"] * 50
    pages = [data[0] for _, data in answers]
    assert len(set(pages[:26])) == 1 and len(set(pages[25:])) == 25


def test_more_than_the_queue_holds_are_answered_or_refused_clearly(address):
    def sample(seed):
        try:
            return events(call(address, "sample", 64, 1.0, seed))[-1][0]
        except urllib.error.HTTPError as refusal:
            reason = refusal.read().decode()
            refusal.close()
            return f"{refusal.code} {reason}"

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(sample, range(100)))
    refused = [answer for answer in answers if answer != "complete"]
    assert answers.count("complete") >= 64
    assert all("queue" in answer.lower() for answer in refused), refused


def test_a_slow_client_gets_its_answer_and_keeps_nobody_waiting(address):
    slow = call(address, "sample", 64, 1.0, 1)
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((host, int(port)))
        path = slow.removeprefix(address)
        line.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        others = [events(call(address, "sample", 1, 1.0, seed))[-1][0] for seed in range(5)]
        assert others == ["complete"] * 5
        line.settimeout(60)
        answer = b""
        while part := line.recv(2**16):
            answer += part
    assert b"event: complete" in answer


def test_memory_is_flat_after_many_requests(server):
    address, pid = server

    def work(seed):
        call_of_kind = [("complete", PICTURE, 4, 1.0, seed), ("sample", 16, 1.0, seed)]
        return events(call(address, *call_of_kind[seed % 2]))[-1][0]

    def held_bytes():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    if not Path(f"/proc/{pid}/status").exists():
        pytest.skip("no /proc")
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(50)))
        before = held_bytes()
        assert set(pool.map(work, range(150))) == {"complete"}
    assert held_bytes() - before < 25 * 2**20


def test_a_client_that_leaves_does_not_keep_others_waiting(address):
    for _ in range(3):
        urllib.request.urlopen(call(address, "sample", 64, 1.0, 0), timeout=60).close()
    kind, _ = events(call(address, "sample", 1, 1.0, 0))[-1]
    assert kind == "complete"


@pytest.mark.parametrize(
    "arguments",
    [("", 1, 1.0, 0), ("{}", 1, 1.0, 0), (PICTURE, 99, 1.0, 0), (PICTURE, 1, -1.0, 0)],
)
def test_what_cannot_be_completed_is_refused_and_the_server_lives(address, arguments):
    kind, _ = events(call(address, "complete", *arguments))[-1]
    assert kind == "error"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.status == 200


def test_files_of_the_machine_cannot_be_asked_for(address):
    picture = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    kind, _ = events(call(address, "open", picture, 8))[-1]
    assert kind == "error"
    assert status_of(f"{address}/gradio_api/file=/etc/passwd") in (403, 404)


def test_uploads_that_are_too_large_are_refused(address):
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + bytes(21 * 2**20) + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
    assert status_of(request) == 413


def test_the_browser_is_told_to_fetch_from_nowhere_else(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")


def uploaded(address, data):
    """Where an upload of a picture lies."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)[0]


def png(seed):
    """A small picture's bytes."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["open", "surprise"])
def test_every_address_that_takes_a_picture_opens_uploads_only(address, tmp_path, name):
    """As a path, as an address, and without the mark by which Gradio finds files to check."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    os.mkfifo(tmp_path / "pipe.png")
    mark, rest = {"meta": {"_type": "gradio.FileData"}}, [8] if name == "open" else []
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.5)
        foreign = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.png"
        for path in (secret, tmp_path / "pipe.png", "/dev/zero", foreign):
            for picture in ({"path": str(path), **mark}, {"path": str(path)}, str(path),
                            {"path": str(path), "url": foreign, **mark}):  # fmt: skip
                assert events(call(address, name, picture, *rest))[-1][0] == "error", picture
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    mine = uploaded(address, png(2))
    assert events(call(address, name, {"path": mine, **mark}, *rest))[-1][0] == "complete"


def test_no_address_answers_to_a_foreign_name_or_another_site(address):
    with urllib.request.urlopen(f"{address}/gradio_api/info", timeout=10) as answer:
        named = json.load(answer)["named_endpoints"]
    assert {"/open", "/complete", "/sample", "/surprise"} <= set(named)
    paths = [f"/gradio_api/call{name}" for name in named] + [f"/gradio_api/run{n}" for n in named]
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/upload", *paths):
        foreign = urllib.request.Request(address + path, b"{}", {"Host": "evil.example"})
        assert status_of(foreign) == 421
        other = urllib.request.Request(address + path, b"{}", {"Origin": "http://evil.example"})
        assert status_of(other) == 403


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_a_drawing_without_a_traceback(tmp_path, number):
    folder = pixel_model(image_size=16).save(tmp_path / "tiny")
    (tmp_path / "up").mkdir()
    command = [sys.executable, "-m", "igpt", "serve", str(folder), "--port", "0"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "up")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    address = next(line for line in process.stderr if "serving on" in line).split()[2]
    uploaded(address, png(3))
    streams = [urllib.request.urlopen(call(address, "sample", 64, 1.0, s)) for s in range(4)]
    streams[0].read(100)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    for stream in streams:
        stream.close()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert list((tmp_path / "up").iterdir()) == []
