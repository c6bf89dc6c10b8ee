"""Serves the page on this machine; the browser may talk to it and to nothing else."""

import socket
from collections.abc import Awaitable, Callable

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response

from igpt.errors import UserError
from igpt.web.app import CSS

MAX_UPLOAD = "20mb"
# Whatever the page's own code would fetch from elsewhere, fonts or scripts, the browser refuses.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'; base-uri 'self'"
)
FONTS = ("system-ui", "sans-serif")
FIXED_FONTS = ("ui-monospace", "monospace")


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is found before anything is loaded.

    Raises:
        UserError: the address cannot be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"cannot serve on {host}:{port}: {error}: choose another with --port"
        ) from error
    return listener


def application(page: gr.Blocks) -> FastAPI:
    """The web application of a page."""
    outer = FastAPI(openapi_url=None)

    @outer.middleware("http")
    async def keep_inside(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    served: FastAPI = gr.mount_gradio_app(
        outer,
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
    return served


def serve_forever(page: gr.Blocks, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    config = uvicorn.Config(application(page), log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
