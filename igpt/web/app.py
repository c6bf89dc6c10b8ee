"""The page: complete a picture, draw new ones, see what surprises the model, classify.

It is served on this machine; the browser may talk to it and to nothing else.
"""

import importlib.resources
import logging
import re
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.data_classes import ImageData

from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.pixelmodel import PixelModel
from igpt.web.answers import (
    MAX_COMPLETIONS,
    MAX_SAMPLES,
    MAX_TEMPERATURE,
    class_of,
    completions,
    hint,
    opened,
    rows_hidden,
    samples,
    surprise_map,
)
from igpt.web.gate import Gate, Uploads

QUEUE_SIZE = 64

# Two photographs that come with scikit-learn; the first is there when the page opens.
PHOTOGRAPHS = Path(str(importlib.resources.files("sklearn.datasets.images")))
EXAMPLES = (PHOTOGRAPHS / "flower.jpg", PHOTOGRAPHS / "china.jpg")

PAINTER = Path(__file__).with_name("painter.js")
CSS = """
.igpt-pictures { display: grid; gap: 12px; }
.igpt-pictures figure { margin: 0; font-size: 0.85rem; }
.igpt-pictures img, .igpt-painter { image-rendering: pixelated; display: block; width: 100%; }
.igpt-pictures img { aspect-ratio: 1; }
.igpt-pictures figcaption { text-align: center; opacity: 0.8; }
.igpt-classes { margin-top: 12px; }
.igpt-classes, .igpt-classes tr, .igpt-classes td { border: none !important; }
.igpt-classes td { padding: 2px 14px 2px 0 !important; }
.igpt-hint { opacity: 0.6; padding: 12px 0; }
.igpt-painter { max-width: 420px; aspect-ratio: 1; touch-action: none; cursor: crosshair; }
"""


def build(model: PixelModel, *, name: str, uploads: Uploads) -> gr.Blocks:
    """The page of one model.

    Args:
        model: what it plays with.
        name: what the model is called there.
        uploads: where the pictures lie that people give to it.
    """
    page = gr.Blocks(title=f"igpt · {name}", analytics_enabled=False)
    with page:
        gr.Markdown(f"# {escaped(name)}\n{_describe(model)}")
        gr.Markdown("Uploads are not kept: they are gone two minutes after they were last used.")
        with gr.Tab("Complete"):
            _complete_tab(model, uploads)
        if model.network.objective == "ar":
            with gr.Tab("Sample"):
                _sample_tab(model)
        with gr.Tab("Surprise"):
            _picture_tab(partial(surprise_map, model), "Show surprise", "surprise", uploads)
        if model.probe() is not None:
            with gr.Tab("Classify"):
                _picture_tab(partial(class_of, model), "Classify", "classify", uploads)
    # One at a time, first come first served: two at once would each take twice as long.
    page.queue(default_concurrency_limit=1, max_size=QUEUE_SIZE)
    uploads.keep()
    return page


def _describe(model: PixelModel) -> str:
    network, side = model.network, model.image_size
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    sees = "what stands above and to the left" if network.objective == "ar" else "all kept pixels"
    return (
        f"{side} by {side} pixels, {network.n_colors} colours, {millions:.1f} million parameters, "
        f"objective {network.objective}: each pixel is predicted from {sees}."
    )


def escaped(name: str) -> str:
    """A name as text in Markdown, whatever signs it has."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|$~&<>])", lambda sign: f"&#{ord(sign[1])};", name)


def _complete_tab(model: PixelModel, uploads: Uploads) -> None:
    side = model.image_size
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = _upload(uploads)
            rows = gr.Slider(
                1,
                side,
                side // 2,
                step=1,
                label="Rows to keep",
                info=f"{side}: the whole picture, but for what you paint",
            )
            n = gr.Slider(1, MAX_COMPLETIONS, 4, step=1, label="Completions")
            temperature, seed = _settings()
        with gr.Column(scale=3, min_width=280):
            gr.Markdown(
                "**What the model sees.** Draw on it with mouse or finger: what is grey is hidden "
                "from the model and imagined anew; draw from grey on to uncover."
            )
            painter = gr.HTML(
                opened(model, str(EXAMPLES[0]), side // 2),
                html_template='<canvas class="igpt-painter" aria-label="picture"></canvas>',
                js_on_load=PAINTER.read_text(),
                elem_id="painter",
            )
            with gr.Row():
                go = gr.Button("Complete", variant="primary", elem_id="complete")
                stop = gr.Button("Stop")
            result = gr.HTML(hint("Complete draws the hidden pixels here."), elem_id="completions")
    upload.change(
        answering(partial(opened, model)),
        [upload, rows],
        painter,
        api_name="open",
        concurrency_limit=2,
    )
    rows.input(
        answering(partial(rows_hidden, model)),
        [painter, rows],
        painter,
        trigger_mode="always_last",
        api_visibility="private",
        queue=False,
    )
    drawing = go.click(
        streaming(partial(completions, model)),
        [painter, n, temperature, seed],
        result,
        api_name="complete",
        concurrency_id="model",
    )
    stop.click(None, cancels=[drawing])


def _sample_tab(model: PixelModel) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            n = gr.Slider(1, MAX_SAMPLES, 16, step=1, label="Images")
            temperature, seed = _settings()
        with gr.Column(scale=3, min_width=280):
            with gr.Row():
                go = gr.Button("Sample", variant="primary", elem_id="sample")
                stop = gr.Button("Stop")
            result = gr.HTML(hint("Sample draws new pictures here."), elem_id="samples")
    drawing = go.click(
        streaming(partial(samples, model)),
        [n, temperature, seed],
        result,
        api_name="sample",
        concurrency_id="model",
    )
    stop.click(None, cancels=[drawing])


def _picture_tab(
    answer: Callable[[str | None], str], button: str, api_name: str, uploads: Uploads
) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = _upload(uploads)
            go = gr.Button(button, variant="primary", elem_id=api_name)
        with gr.Column(scale=3, min_width=280):
            result = gr.HTML(hint(f"{button} answers here."), elem_id=f"{api_name}-result")
    go.click(answering(answer), upload, result, api_name=api_name, concurrency_id="model")


def _upload(uploads: Uploads) -> gr.Image:
    """An upload whose bytes only `read_image` opens, with two photographs to pick from."""

    def path_of(payload: ImageData | None) -> str | None:
        return uploads.checked(None if payload is None else payload.path)

    upload = gr.Image(
        str(EXAMPLES[0]),
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Picture",
        height=220,
    )
    # Gradio would open the file itself, whatever its size and kind.
    upload.preprocess = answering(path_of)  # type: ignore[method-assign]
    gr.Examples([[str(path)] for path in EXAMPLES], upload, api_visibility="private")
    return upload


def _settings() -> tuple[gr.Slider, gr.Number]:
    temperature = gr.Slider(
        0, MAX_TEMPERATURE, SampleConfig().temperature, step=0.05, label="Temperature"
    )
    return temperature, gr.Number(0, precision=0, label="Seed")


def answering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what a user can mend shown on the page."""

    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


def streaming(function: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """The same for a function whose answer grows."""

    def answer(*args: Any) -> Iterator[str]:
        try:
            yield from function(*args)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


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
