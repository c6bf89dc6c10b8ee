"""Who may ask the page, and for what: every request passes here before Gradio sees it.

Unusual here: Gradio has no check of the Host header when it is mounted, so that a foreign name that
points to this machine (DNS rebinding) would make its pages ours. The pictures that people give are
kept here too: where they lie, which are opened, when they go.
"""

import contextlib
import ipaddress
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from igpt.errors import UserError
from igpt.files import private_folder

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# What the page and its scripts ask for; the rest of Gradio's addresses (proxy, history, recording,
# component servers, reload) is not needed here.
ADDRESSES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|app_id|startup-events|upload|upload_progress|cancel|reset|token|user)/?"
    r"|/gradio_api/(heartbeat|queue|call|run|api)/.*"
    r"|/gradio_api/file=.*"
)
# Whatever the page's own code would fetch from elsewhere, fonts or scripts, the browser refuses;
# and no other page may show this one in a frame.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Gate:
    """An application behind the checks of Host, Origin and address.

    Args:
        inner: what answers.
        names: by which the page may be reached besides numbers, localhost and this machine's name.
    """

    def __init__(self, inner: Application, *, names: Collection[str] = ()) -> None:
        self._inner = inner
        self._names = {name.lower() for name in names} | own_names()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                theirs = [pair for pair in message["headers"] if pair[0].decode() not in HEADERS]
                message = {**message, "headers": [*theirs, *ours]}
            await send(message)

        if scope["type"] == "http" and (why := self._refusal(scope)):
            status, text = why
            head = [(b"content-type", b"text/plain; charset=utf-8")]
            await marked({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": f"{text}\n".encode()})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._inner(scope, receive, marked)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """The status and the reason why a request is not passed on."""
        found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts, origins = found.get("host", []), found.get("origin", [])
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return 421, "this page is not known by that name: see igpt serve --help, --names"
        if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return 403, "this page answers no other site"
        foreign = found.get("sec-fetch-site", ["none"])[0] not in ("none", "same-origin")
        if foreign and scope["method"] not in ("GET", "HEAD"):
            return 403, "this page answers no other site"
        if not ADDRESSES.fullmatch(scope["path"]):
            return 404, "there is no such address here"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine; a number cannot be another's name."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def own_names() -> set[str]:
    """What this machine is called, as far as it knows."""
    own = socket.gethostname().lower()
    return {"localhost", own, f"{own.partition('.')[0]}.local", socket.getfqdn().lower()}


# Since it was last used: as long as it may be asked for once more, such as for its classes.
KEPT_S = 120.0
# An upload that nobody used, such as one that was cut off.
UNUSED_KEPT_S = 600.0
SWEEP_EVERY_S = 20.0


class Uploads:
    """Opens what was uploaded and nothing else; forgets it soon after use.

    Args:
        folder: where Gradio puts uploads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._kept: set[Path] = set()
        self._used_s: dict[Path, float] = {}

    def keep(self) -> None:
        """What lies there now, the examples, stays until the page ends."""
        self._kept = set(self._files())

    def checked(self, name: str | None) -> str | None:
        """The path of an upload, as a browser names it; it may name anything.

        Raises:
            UserError: it is no file that was uploaded, or is kept no longer.
        """
        if name is None:
            return None
        path = Path(os.path.realpath(name))
        if not path.is_relative_to(self.folder):
            raise UserError("that picture was not uploaded here: upload it")
        try:
            is_file = stat.S_ISREG(path.lstat().st_mode)
        except OSError:
            is_file = False
        if not is_file:
            raise UserError("that picture is no longer kept here: upload it again")
        self._used_s[path] = time.monotonic()
        return str(path)

    def sweep(self) -> None:
        """Remove what was used, and what nobody used for long."""
        now_s, now = time.monotonic(), time.time()
        for path in set(self._files()) - self._kept:
            used_s = self._used_s.get(path)
            with contextlib.suppress(OSError):
                is_over = (
                    now - path.stat().st_mtime > UNUSED_KEPT_S
                    if used_s is None
                    else now_s - used_s > KEPT_S
                )
                if is_over:
                    path.unlink()
                    self._used_s.pop(path, None)
                    path.parent.rmdir()

    def _files(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_file())

    @contextlib.contextmanager
    def swept(self) -> Iterator[None]:
        """`sweep` now and then, in a thread."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(SWEEP_EVERY_S):
                self.sweep()

        thread = threading.Thread(target=work, name="uploads", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def own_uploads() -> Iterator[Uploads]:
    """Uploads in a folder that only this user may read, and that is gone when the page ends."""
    base = os.environ.get("GRADIO_TEMP_DIR")
    with private_folder("igpt-page", base=Path(base) if base else None) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read whenever an upload comes
        try:
            yield Uploads(folder)
        finally:
            if base:
                os.environ["GRADIO_TEMP_DIR"] = base
            else:
                del os.environ["GRADIO_TEMP_DIR"]
