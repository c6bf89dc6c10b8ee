"""Serves the page on this machine; the browser may talk to it and to nothing else."""

import logging
import socket
import sys
import traceback
from collections.abc import Collection

import gradio as gr
import uvicorn
from fastapi import FastAPI

from igpt.errors import UserError
from igpt.web.app import CSS
from igpt.web.gate import Gate, Uploads

MAX_UPLOAD = "20mb"
FONTS = ("system-ui", "sans-serif")
FIXED_FONTS = ("ui-monospace", "monospace")


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is found before anything is loaded.

    Raises:
        UserError: the address cannot be had, or none is given: that would mean all of them.
    """
    if not host.strip():
        raise UserError(
            "--host is empty: leave it out for this machine alone, or write 0.0.0.0 for everybody "
            "in your network"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        raise UserError(
            f"cannot serve on {host}:{port}: {error}: choose another with --port"
        ) from error
    return listener


def application(page: gr.Blocks, *, names: Collection[str] = ()) -> Gate:
    """The web application of a page, behind the gate."""
    # Gradio opens uploads only, but looks at nothing in a page that was never launched.
    page.has_launched = True
    served: FastAPI = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="",
        theme=gr.themes.Default(font=FONTS, font_mono=FIXED_FONTS),
        css=CSS,
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return Gate(served, names=names)


def serve_forever(
    page: gr.Blocks, listener: socket.socket, uploads: Uploads, *, names: Collection[str] = ()
) -> None:
    """Serve until Ctrl-C or another signal."""
    _without_tracebacks()
    config = uvicorn.Config(
        application(page, names=names),
        log_level="warning",
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    with uploads.swept():
        uvicorn.Server(config).run(sockets=[listener])


def _without_tracebacks() -> None:
    """What a client sent wrong, or left unfinished when the page ends, is a line in the log."""

    class Brief:
        """`traceback`, as Gradio uses it."""

        @staticmethod
        def print_exc() -> None:
            error = sys.exception()
            print(f"igpt: refused: {type(error).__name__}: {_line(error)}", file=sys.stderr)

        def __getattr__(self, name: str) -> object:
            return getattr(traceback, name)

    for module in ("queueing", "routes", "route_utils", "utils"):
        vars(sys.modules[f"gradio.{module}"])["traceback"] = Brief()
    logging.getLogger("uvicorn.error").addFilter(_shortened)


def _shortened(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        record.msg, record.args = f"{type(error).__name__}: {_line(error)}", ()
        record.exc_info = record.exc_text = None
    elif "Traceback" in str(record.msg):  # what was cut off when the server ended
        return False
    return True


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:200]
