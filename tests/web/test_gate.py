"""Who may ask, and for what; without Gradio."""

import asyncio
import os
import socket

import pytest

from igpt.errors import UserError
from igpt.web import gate
from igpt.web.gate import Gate, Uploads, own_uploads

OWN = socket.gethostname().lower()


async def inner(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-inner", b"1")]})
    await send({"type": "http.response.body", "body": b""})


def asked(path="/", method="GET", *, names=(), **headers):
    """Status and headers of a request."""
    head = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items() if v is not None]
    scope = {"type": "http", "path": path, "method": method, "headers": head}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(inner, names=names)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:80", "[::1]:7860", "192.168.1.7", OWN, f"{OWN}:99"]
)
def test_by_number_and_by_its_own_name_the_page_is_reached(host):
    assert asked(host=host)[0] == 200


@pytest.mark.parametrize("host", [None, "", "evil.example", "evil.example:7860", "[", "a@b", "1.2"])
def test_by_another_name_it_is_not(host):
    """A name of someone else's that points here would make the page his."""
    assert asked(host=host)[0] == 421
    assert asked("/gradio_api/upload", "POST", host=host)[0] == 421


def test_a_name_that_is_given_is_known():
    assert asked(host="Demo.example:443", names=["demo.EXAMPLE"])[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://"])
@pytest.mark.parametrize("path", ["/", "/gradio_api/upload", "/gradio_api/call/sample"])
def test_other_sites_are_refused(origin, path):
    assert asked(path, "POST", host="127.0.0.1:7860", origin=origin)[0] == 403
    own = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}
    assert asked(path, "POST", **own)[0] == 200
    assert asked(path, "POST", **own, sec_fetch_site="cross-site")[0] == 403


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=http://a", "/gradio_api/runs", "/gradio_api/dev/reload", "/docs", "/login",
     "/monitoring", "/gradio_api/stream/a", "/gradio_api/component_server", "/openapi.json",
     "/gradio_api/custom_component/1/a/b/c", "/gradio_api/vibe-code/", "//config"],
)  # fmt: skip
def test_addresses_that_the_page_does_not_need_are_not_there(path):
    assert asked(path, host="localhost")[0] == 404


def test_every_answer_refuses_frames_and_foreign_code():
    for host in ("localhost", "evil.example"):
        headers = asked(host=host)[1]
        assert headers[b"x-frame-options"] == b"DENY"
        assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]


def test_only_regular_files_among_the_uploads_are_opened(tmp_path):
    folder = tmp_path / "uploads"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "mine.png").write_bytes(b"1")
    (tmp_path / "secret.png").write_bytes(b"1")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    held = Uploads(folder)
    assert held.checked(None) is None
    assert held.checked(str(folder / "a" / "mine.png")) == str(folder / "a" / "mine.png")
    outside = [
        tmp_path / "secret.png",
        folder / "link.png",
        folder / ".." / "secret.png",
        "/dev/zero",
    ]
    for name in (*outside, "", "http://a/b.png"):
        with pytest.raises(UserError, match="was not uploaded here"):
            held.checked(str(name))
    for name in ("pipe.png", "a", "gone.png"):
        with pytest.raises(UserError, match="no longer kept here: upload it again"):
            held.checked(str(folder / name))


def test_uploads_go_after_use_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with own_uploads() as held:
        assert held.folder.parent == tmp_path and held.folder.stat().st_mode & 0o077 == 0
        for name in ("example", "used", "unused"):
            (held.folder / name).mkdir()
            (held.folder / name / "a.png").write_bytes(b"1")
            if name == "example":
                held.keep()
        held.checked(str(held.folder / "used" / "a.png"))
        held.checked(str(held.folder / "example" / "a.png"))
        held.sweep()
        assert len(list(held.folder.rglob("*.png"))) == 3
        monkeypatch.setattr(gate, "KEPT_S", -1)
        held.sweep()
        assert {p.parent.name for p in held.folder.rglob("*.png")} == {"example", "unused"}
        monkeypatch.setattr(gate, "UNUSED_KEPT_S", -1)
        held.sweep()
        assert {p.parent.name for p in held.folder.rglob("*.png")} == {"example"}
    assert list(tmp_path.iterdir()) == []
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)


def test_what_a_killed_page_left_goes_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    left = tmp_path / "igpt-page-0"
    left.mkdir()
    (left / "a.png").write_bytes(b"1")
    with own_uploads() as first:
        assert not left.exists()
        with own_uploads():
            assert first.folder.is_dir()
