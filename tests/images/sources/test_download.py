import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images.sources.download import Remote, fetch

DATA = bytes(range(256)) * 4000


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA, in pieces that break off when `cut` says so."""

    cut = 0
    with_ranges = True
    busy = 0
    """Answers of status 503 before the first sound one."""
    pause_s = 0.0
    requests: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).requests.append(wanted)
        time.sleep(self.pause_s)
        start = int(wanted[6:-1]) if wanted and self.with_ranges else 0
        if len(self.requests) <= self.busy or (wanted and start >= len(DATA)):
            self.send_response(503 if len(self.requests) <= self.busy else 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        self.wfile.write(DATA[start : start + self.cut] if self.cut else DATA[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as held:
        thread = threading.Thread(target=held.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{held.server_port}/file", handler
        held.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGPT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def remote(*addresses: str, n_bytes: int = len(DATA), data: bytes = DATA) -> Remote:
    digest = hashlib.sha256(data).hexdigest()
    return Remote("file.bin", addresses, n_bytes, "sha256", digest)


@pytest.mark.parametrize("n_bytes", [0, len(DATA)])
def test_a_file_is_fetched_once(
    tmp_path: Path, server: tuple[str, type[_Handler]], n_bytes: int
) -> None:
    address, handler = server
    for _ in range(2):
        assert fetch(remote(address, n_bytes=n_bytes), tmp_path).read_bytes() == DATA
    assert handler.requests == [None]


def test_a_broken_connection_is_taken_up_where_it_broke(
    tmp_path: Path, server: tuple[str, type[_Handler]]
) -> None:
    address, handler = server
    handler.cut = 400_000
    assert fetch(remote(address), tmp_path).read_bytes() == DATA
    assert handler.requests == [None, "bytes=400000-", "bytes=800000-"]


def test_an_earlier_download_is_continued(
    tmp_path: Path, server: tuple[str, type[_Handler]]
) -> None:
    address, handler = server
    (tmp_path / "file.bin.part").write_bytes(DATA[:1000])
    assert fetch(remote(address), tmp_path).read_bytes() == DATA
    assert handler.requests == ["bytes=1000-"]
    assert not (tmp_path / "file.bin.part").exists()


def test_a_server_without_ranges_starts_over(
    tmp_path: Path, server: tuple[str, type[_Handler]]
) -> None:
    address, handler = server
    handler.with_ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    assert fetch(remote(address), tmp_path).read_bytes() == DATA


def test_wrong_content_is_deleted(tmp_path: Path, server: tuple[str, type[_Handler]]) -> None:
    address, _ = server
    with pytest.raises(UserError, match=r"file.bin came with a wrong checksum and was deleted"):
        fetch(remote(address, data=b"other"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_a_spoilt_file_in_the_cache_is_fetched_again(
    tmp_path: Path, server: tuple[str, type[_Handler]]
) -> None:
    address, _ = server
    (tmp_path / "file.bin").write_bytes(b"spoilt")
    assert fetch(remote(address), tmp_path).read_bytes() == DATA


def test_the_next_address_is_tried(tmp_path: Path, server: tuple[str, type[_Handler]]) -> None:
    address, _ = server
    assert fetch(remote("http://127.0.0.1:9/file", address), tmp_path).read_bytes() == DATA


def test_no_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no answer for file.bin"):
        fetch(remote("http://127.0.0.1:9/file"), tmp_path)


def test_offline_mode_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="the network is switched off"):
        fetch(remote("http://127.0.0.1:9/file"), tmp_path)


@pytest.mark.parametrize("n_bytes", [0, len(DATA)])
def test_a_complete_part_is_used_without_a_request(
    tmp_path: Path, server: tuple[str, type[_Handler]], n_bytes: int
) -> None:
    address, handler = server
    (tmp_path / "file.bin.part").write_bytes(DATA)
    assert fetch(remote(address, n_bytes=n_bytes), tmp_path).read_bytes() == DATA
    assert handler.requests == []


@pytest.mark.parametrize("begun", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1)])
@pytest.mark.parametrize("n_bytes", [0, len(DATA)])
def test_the_beginning_of_another_file_is_dropped(
    tmp_path: Path, server: tuple[str, type[_Handler]], n_bytes: int, begun: bytes
) -> None:
    address, _ = server
    (tmp_path / "file.bin.part").write_bytes(begun)
    assert fetch(remote(address, n_bytes=n_bytes), tmp_path).read_bytes() == DATA


def test_a_busy_server_is_asked_again(
    tmp_path: Path, server: tuple[str, type[_Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, handler = server
    monkeypatch.setattr("igpt.images.sources.download.PAUSE_S", 0.01)
    handler.busy = 2
    assert fetch(remote(address), tmp_path).read_bytes() == DATA
    assert handler.requests == [None] * 3


def test_two_at_once_fetch_once(
    tmp_path: Path, server: tuple[str, type[_Handler]], capfd: pytest.CaptureFixture[str]
) -> None:
    address, handler = server
    handler.pause_s = 0.3
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch, remote(address), tmp_path) for _ in range(2)]
    assert [path.result().read_bytes() == DATA for path in both] == [True, True]
    assert handler.requests == [None]
    assert "another process fetches file.bin: waiting for it" in capfd.readouterr().err
