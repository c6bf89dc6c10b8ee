"""The page as a program sees it: many at once, clients that leave, uploads that are too much."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from igpt.web.canvas import Canvas

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
