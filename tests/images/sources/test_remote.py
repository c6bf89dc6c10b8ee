"""Data that is elsewhere, on a server of this machine or in fsspec's memory."""

import contextlib
import gzip
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images import prepare
from igpt.images.packed.rows import Packing
from igpt.images.sources import remote
from igpt.images.sources.find import open_source
from tests.images.pictures import class_files, encoded, noise, tar_bytes
from tests.images.sources.reading import read

SHA = "c0ffee" + "0" * 34


class Server:
    """Files by path; `breaks` connections break off in the middle, `silent` ones never begin."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, object] = {}
        self.requests: list[str] = []
        self.breaks = 0
        self.silent: set[str] = set()
        self.has_ranges = True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                server.answer(self, with_body=False)

            def do_GET(self) -> None:
                server.answer(self, with_body=True)

        self._held = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._held.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._held.server_port}"

    def close(self) -> None:
        self._held.shutdown()
        self._thread.join()
        self._held.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(request.path.split("?")[0])
        wanted = request.headers.get("Range", "")
        if with_body:
            self.requests.append(f"{path} {wanted}".strip())
        if path in self.silent:
            time.sleep(0.5)
            return
        if path in self.answers:
            data, kind = json.dumps(self.answers[path]).encode(), "application/json"
        elif path in self.files:
            data, kind = self.files[path], "application/octet-stream"
        else:
            request.send_error(404)
            return
        start, stop = 0, len(data)
        if wanted and self.has_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(stop, int(last) + 1 if last else stop)
        request.send_response(206 if wanted and self.has_ranges else 200)
        request.send_header("Content-Length", str(stop - start))
        request.send_header("Content-Type", kind)
        request.send_header("ETag", f'"{hash(data) & 0xFFFFFFFF:x}"')
        request.send_header("X-Repo-Commit", SHA)
        if self.has_ranges:
            request.send_header("Accept-Ranges", "bytes")
        if wanted and self.has_ranges:
            request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        request.end_headers()
        if with_body and self.breaks and path in self.files:
            self.breaks -= 1
            stop = start + (stop - start) // 2
        with contextlib.suppress(ConnectionError):
            request.wfile.write(data[start:stop] if with_body else b"")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    held = Server()
    yield held
    held.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    for name in ("IGPT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def memory() -> Iterator[dict[str, bytes]]:
    """fsspec's files in memory: what is put in the dictionary before `open_source`."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()

    class Files(dict[str, bytes]):
        def __setitem__(self, name: str, data: bytes) -> None:
            fs.pipe_file(name, data)

    yield Files()
    fs.store.clear()


def photos(n: int = 3) -> bytes:
    return tar_bytes({f"{c}/{i}.png": encoded(noise(40, 40, i)) for c in "ab" for i in range(n)})


def test_a_folder_in_any_store_is_read_as_one_on_this_disk(memory: dict[str, bytes]) -> None:
    for name, data in class_files().items():
        memory[f"/photos/{name}"] = data
    memory["/photos/a/._0.png"] = b"x"
    source = open_source("memory://photos")
    assert (source.name, source.classes) == ("memory://photos", ("a", "b"))
    found = read(source)
    assert (found.labels, found.rejects) == ([0, 0, 0, 1, 1, 1], {})
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 40, 41, 42]


def test_a_pattern_takes_several_files_and_their_names_say_splits(memory: dict[str, bytes]) -> None:
    for split in ("train", "test"):
        memory[f"/sets/toy-{split}.tar"] = photos()
    assert sorted(set(read(open_source("memory://sets/toy-*.tar")).codes)) == [0, 2]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_of_a_server_is_fetched_once_and_where_it_broke(
    server: Server, has_ranges: bool
) -> None:
    large = tar_bytes({"noise.bin": np.random.default_rng(0).bytes(6 * 2**20)})
    server.files["/a/photos.tar.gz"] = gzip.compress(photos(), 0) + gzip.compress(large, 0)
    server.has_ranges, server.breaks = has_ranges, 1
    for _ in range(2):
        assert len(read(open_source(f"{server.url}/a/photos.tar.gz")).images) == 6
    assert server.requests[0] == "/a/photos.tar.gz"
    if has_ranges:
        assert all("bytes=" in request for request in server.requests[1:])
    n_requests = len(server.requests)
    read(open_source(f"{server.url}/a/photos.tar.gz"))
    assert len(server.requests) == n_requests


def test_a_changed_file_is_another_state(server: Server) -> None:
    address = f"{server.url}/photos.tar"
    server.files["/photos.tar"] = photos()
    first = remote.mirror(address)
    assert remote.mirror(address).key == first.key
    server.files["/photos.tar"] = photos(4)
    fsspec.filesystem("http").invalidate_cache()
    assert remote.mirror(address).key != first.key
    assert len(read(open_source(address)).images) == 8


def test_a_prepared_set_is_used_without_the_network(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"{server.url}/photos.tar"
    server.files["/photos.tar"] = photos(20)
    first = prepare.open_data(address, image_size=8)
    n_requests = len(server.requests)
    monkeypatch.setenv("IGPT_OFFLINE", "1")
    assert prepare.open_data(address, image_size=8).digest == first.digest
    assert len(server.requests) == n_requests
    assert "the network is switched off" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"no answer .the network is switched off.: try again"):
        open_source(f"{server.url}/other.tar")


def test_a_preparation_goes_on_where_the_network_broke(
    tmp_path: Path, server: Server, memory: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        server.files[f"/{i}.tar"] = memory[f"/sets/{i}.tar"] = photos(70)
    packing = Packing(image_size=8)
    whole = prepare.prepare(open_source("memory://sets"), tmp_path / "w", packing=packing)
    calls = []

    def breaks(*args: object) -> None:
        calls.append(args)
        if len(calls) > 4:
            raise OSError("the cable")
        get(*args)

    get = remote._get_fsspec
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("IGPT_REMOTE_GB", "0.000001")  # every file is fetched for each pass
    monkeypatch.setattr(remote, "_get_fsspec", breaks)
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    with pytest.raises(UserError, match=r"1.tar cannot be fetched \(the cable\): try again later"):
        prepare.prepare(open_source("memory://sets"), tmp_path / "p", packing=packing)
    monkeypatch.setattr(remote, "_get_fsspec", get)
    again = prepare.prepare(open_source("memory://sets"), tmp_path / "p", packing=packing)
    assert again.digest == whole.digest


def test_shards_named_by_braces_of_which_one_never_answers(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.1)
    for i in range(4):
        server.files[f"/sets/{i:02}.tar"] = photos(3)
    server.silent = {"/sets/02.tar"}
    address = f"{server.url}/sets/{{00..03}}.tar"
    packed = prepare.prepare(open_source(address), tmp_path / "p", packing=Packing(image_size=8))
    assert packed.manifest["n_images"] == 18
    assert packed.manifest["rejects"] == {"nobody answers for its archive": 1}
    assert '"02.tar/0",nobody' in (tmp_path / "p/rejects.csv").read_text()
    assert sum("02.tar" in request for request in server.requests) == remote.ATTEMPTS


def test_where_nobody_answers_for_most_shards_nothing_is_left_out(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.05)
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    for i in range(3):
        server.files[f"/{i}.tar"] = photos(3)
    server.silent = {"/1.tar", "/2.tar"}
    with pytest.raises(UserError, match=r"2 of 3 archives: .*1.tar cannot be .*try again later"):
        open_source(f"{server.url}/{{0..2}}.tar")


def test_a_slow_file_is_fetched_as_long_as_more_of_it_comes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    large = np.random.default_rng(0).bytes(16 * 2**20)
    server.files["/photos.tar"] = tar_bytes({"0.png": encoded(noise(40, 40)), "noise.bin": large})
    server.breaks = 3  # each time in the middle of what lacks
    assert len(read(open_source(f"{server.url}/photos.tar")).images) == 1


def test_the_cache_is_bounded(
    tmp_path: Path, memory: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        memory[f"/sets/{i}.tar"] = photos(10)
    size = len(photos(10))
    monkeypatch.setenv("IGPT_REMOTE_GB", str(2.5 * size / 1e9))
    assert len(read(open_source("memory://sets")).images) == 120
    held = [p.stat().st_size for p in (tmp_path / "cache/remote").rglob("*.tar")]
    assert sum(held) <= 3 * size
    assert sorted(set(held)) == [0, size]
    memory["/more/0.tar"] = memory["/more/1.tar"] = photos(10)
    assert len(read(open_source("memory://more")).images) == 40
    held = [p.stat().st_size for p in (tmp_path / "cache/remote").rglob("*.tar")]
    assert sum(held) <= 3 * size  # of both together


def test_a_server_that_is_not_there_is_no_absent_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no answer .*: try again later"):
        open_source("http://127.0.0.1:9/photos.tar")


def hub(server: Server, files: dict[str, bytes], card: str = "") -> None:
    """The Hub's answers for the data set me/toy."""
    files = files | {"README.md": card.encode()}
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    described = {"id": "me/toy", "sha": SHA, "siblings": siblings}
    if card:
        import yaml

        described["cardData"] = yaml.safe_load(card.strip("-\n"))
    for revision in ("main", SHA, "v1"):
        server.answers[f"/api/datasets/me/toy/revision/{revision}"] = described
    server.answers["/api/datasets/me/toy"] = described
    for name, data in files.items():
        server.files[f"/datasets/me/toy/resolve/{SHA}/{name}"] = data


@pytest.fixture
def endpoint(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return server


def parquet(n: int, first: int = 0) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import io

    import pyarrow.parquet as pq

    rows = [{"bytes": encoded(noise(12, 12, first + i)), "path": None} for i in range(n)]
    held = io.BytesIO()
    pq.write_table(pa.table({"image": rows, "label": [i % 2 for i in range(n)]}), held)
    return held.getvalue()


@pytest.mark.parametrize("name", ["hf:me/toy", "hf:me/toy@v1"])
def test_a_data_set_of_the_hub_in_parquet(endpoint: Server, name: str) -> None:
    files = {
        "data/train-00000-of-00001.parquet": parquet(8),
        "data/test-00000-of-00001.parquet": parquet(4),
    }
    hub(endpoint, files)
    source = open_source(name)
    assert source.name == f"hf:me/toy@{SHA[:12]}"
    found = read(source)
    assert np.bincount(found.codes).tolist() == [8, 0, 4]
    assert sorted(set(found.labels)) == [0, 1]


def test_a_data_set_of_the_hub_as_folders_of_images(endpoint: Server) -> None:
    hub(endpoint, class_files())
    assert read(open_source("hf:me/toy")).labels == [0, 0, 0, 1, 1, 1]


CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
- config_name: large
  data_files: [{split: train, path: "large/*.tar"}]
---
"""


def test_one_of_several_configurations_is_named(endpoint: Server) -> None:
    hub(endpoint, {"small/train-0.tar": photos(2), "large/0.tar": photos(5)}, CARD)
    assert len(read(open_source("hf:me/toy:large")).images) == 10
    with pytest.raises(UserError, match="configurations large, small: add one, as hf:me/toy:large"):
        open_source("hf:me/toy")
    with pytest.raises(UserError, match="there is no configuration huge: it has large, small"):
        open_source("hf:me/toy:huge")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("hf:me/none", "there is nothing, or no leave to read it .status 404.: check the name"),
        ("hf:a b", "write hf:owner/name.@revision..:config."),
        ("memory://none", "there is nothing .*: check the address"),
        ("nothing://x", "is no address that fsspec knows"),
        ("s3://bucket/x", "cannot be opened: .*s3fs"),
    ],
)
def test_what_cannot_be_had_is_one_line(endpoint: Server, data: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        open_source(data)
    assert str(refusal.value).startswith(data)
    assert "\n" not in str(refusal.value)


def test_a_name_that_could_be_a_path_asks_nobody(endpoint: Server) -> None:
    hub(endpoint, class_files())
    with pytest.raises(UserError, match="or hf:me/toy for a data set of the Hub"):
        open_source("me/toy")
    assert endpoint.requests == []


def test_names_that_lead_out_are_not_laid_out(tmp_path: Path, endpoint: Server) -> None:
    hub(endpoint, class_files() | {"../../evil.png": b"x", "/etc/evil.png": b"x"})
    assert len(read(open_source("hf:me/toy")).images) == 6
    assert not list(tmp_path.rglob("evil*"))
