"""The page: complete a picture, draw new ones, see what surprises the model, classify."""

import base64
import html
import importlib.resources
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData

from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.evaluate.likelihood import token_surprise
from igpt.generate.complete import completing
from igpt.generate.pictures import heat_map, look, some
from igpt.generate.sample import Progress, sampling
from igpt.images.files import open_image, read_image
from igpt.images.grid import to_png_bytes
from igpt.pixelmodel import PixelModel
from igpt.web.canvas import Canvas

MAX_COMPLETIONS = 8
MAX_SAMPLES = 64
MAX_TEMPERATURE = 3.0
MAX_UPLOAD_PIXELS = 2**25
# Faster changes than this are lost on the eye and on a slow line.
LOOK_EVERY_S = 0.1
QUEUE_SIZE = 64
UPLOADS_KEPT_S = 3600

PAINTER = Path(__file__).with_name("painter.js")
CSS = """
.igpt-pictures { display: grid; gap: 12px; }
.igpt-pictures figure { margin: 0; font-size: 0.85rem; }
.igpt-pictures img, .igpt-painter { image-rendering: pixelated; display: block; width: 100%; }
.igpt-pictures img { aspect-ratio: 1; }
.igpt-painter { max-width: 420px; aspect-ratio: 1; touch-action: none; cursor: crosshair; }
"""
# Least width of one picture on the page.
SMALL_PX, MEDIUM_PX, LARGE_PX = 64, 112, 220


def build(model: PixelModel, *, name: str) -> gr.Blocks:
    """The page of one model.

    Args:
        model: what it plays with.
        name: what the model is called there.
    """
    page = gr.Blocks(
        title=f"igpt · {name}",
        analytics_enabled=False,
        delete_cache=(UPLOADS_KEPT_S, UPLOADS_KEPT_S),
    )
    with page:
        gr.Markdown(f"# {html.escape(name)}\n{_describe(model)}")
        with gr.Tab("Complete"):
            _complete_tab(model)
        if model.network.objective == "ar":
            with gr.Tab("Sample"):
                _sample_tab(model)
        with gr.Tab("Surprise"):
            _picture_tab(partial(surprise_map, model), "Show surprise", "surprise")
        if model.probe() is not None:
            with gr.Tab("Classify"):
                _picture_tab(partial(class_of, model), "Classify", "classify")
    # One at a time, first come first served: two at once would each take twice as long.
    page.queue(default_concurrency_limit=1, max_size=QUEUE_SIZE)
    return page


def _describe(model: PixelModel) -> str:
    network, side = model.network, model.image_size
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    sees = "what stands above and to the left" if network.objective == "ar" else "all kept pixels"
    return (
        f"{side} by {side} pixels, {network.n_colors} colours, {millions:.1f} million parameters, "
        f"objective {network.objective}: each pixel is predicted from {sees}."
    )


def _complete_tab(model: PixelModel) -> None:
    side = model.image_size
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = _upload()
            rows = gr.Slider(
                1, side, side // 2, step=1, label=f"Rows to keep ({side}: all that is unpainted)"
            )
            n = gr.Slider(1, MAX_COMPLETIONS, 4, step=1, label="Completions")
            temperature, seed = _settings()
        with gr.Column(scale=3, min_width=280):
            gr.Markdown("**What the model sees.** Paint over pixels to hide or uncover them.")
            painter = gr.HTML(
                "",
                html_template='<canvas class="igpt-painter" aria-label="picture"></canvas>',
                js_on_load=PAINTER.read_text(),
                elem_id="painter",
            )
            with gr.Row():
                go = gr.Button("Complete", variant="primary", elem_id="complete")
                stop = gr.Button("Stop")
            result = gr.HTML(elem_id="completions")
    upload.change(
        answering(partial(opened, model)),
        [upload, rows],
        painter,
        api_name="open",
        concurrency_limit=2,
    )
    rows.release(
        answering(partial(rows_hidden, model)),
        [painter, rows],
        painter,
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
            result = gr.HTML(elem_id="samples")
    drawing = go.click(
        streaming(partial(samples, model)),
        [n, temperature, seed],
        result,
        api_name="sample",
        concurrency_id="model",
    )
    stop.click(None, cancels=[drawing])


def _picture_tab(answer: Callable[[str | None], str], button: str, api_name: str) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = _upload()
            go = gr.Button(button, variant="primary", elem_id=api_name)
        with gr.Column(scale=3, min_width=280):
            result = gr.HTML(elem_id=f"{api_name}-result")
    go.click(answering(answer), upload, result, api_name=api_name, concurrency_id="model")


def _upload() -> gr.Image:
    """An upload whose bytes only `read_image` opens, with two photographs to pick from."""
    upload = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Picture",
        height=220,
    )
    # Gradio would open the file itself, whatever its size and kind.
    upload.preprocess = path_of  # type: ignore[method-assign]
    photographs = importlib.resources.files("sklearn.datasets.images")
    examples = [[str(photographs / file)] for file in ("flower.jpg", "china.jpg")]
    gr.Examples(examples, upload, api_visibility="private")
    return upload


def path_of(payload: ImageData | None) -> str | None:
    """Where an upload lies; Gradio has checked that it is among the uploads."""
    return None if payload is None else payload.path


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


def read_upload(path: str | None) -> np.ndarray:
    """An uploaded picture: (H, W, 3) uint8.

    Raises:
        UserError: there is none, it is no image, or it has more than `MAX_UPLOAD_PIXELS`.
    """
    if path is None:
        raise UserError("there is no picture yet: upload one or pick an example")
    try:
        with open_image(Path(path)) as image:
            n_pixels = image.width * image.height
    except UserError as error:
        raise UserError(f"the picture cannot be read: {error}") from error
    if n_pixels > MAX_UPLOAD_PIXELS:
        raise UserError(
            f"the picture has {n_pixels / 1e6:.0f} million pixels: "
            f"choose one of at most {MAX_UPLOAD_PIXELS / 1e6:.0f} million"
        )
    return read_image(path)


def opened(model: PixelModel, path: str | None, rows: float) -> str:
    """The painter's value for an upload."""
    if path is None:
        return ""
    pixels = model.pixels(read_upload(path))[0]
    return Canvas(pixels, _rows(model, rows)).dump()


def rows_hidden(model: PixelModel, text: str | None, rows: float) -> str:
    """The painter's value with another number of rows kept; what was painted is undone."""
    if not text:
        return ""
    return Canvas(Canvas.parse(text, model.image_size).pixels, _rows(model, rows)).dump()


def _rows(model: PixelModel, rows: float) -> np.ndarray:
    side = model.image_size
    return np.repeat(np.arange(side)[:, None] < int(rows), side, axis=1)  # (S, S)


def completions(
    model: PixelModel, text: str | None, n: float, temperature: float, seed: float | None
) -> Iterator[str]:
    """Completions as they are drawn, as pieces of a page."""
    canvas = Canvas.parse(text, model.image_size)
    steps = completing(
        model.network,
        model.encode(canvas.pixels),
        model.token_mask(canvas.keep),
        n=_whole(n, "completions", MAX_COMPLETIONS),
        seed=_seed(seed),
        config=_config(temperature),
    )
    return _seen(model, steps, "completion", width_px=MEDIUM_PX)


def samples(model: PixelModel, n: float, temperature: float, seed: float | None) -> Iterator[str]:
    """Samples as they are drawn, as pieces of a page."""
    count = _whole(n, "images", MAX_SAMPLES)
    steps = sampling(model.network, count, seed=_seed(seed), config=_config(temperature))
    return _seen(model, steps, "sample", width_px=SMALL_PX)


def _seen(
    model: PixelModel, steps: Iterator[Progress], caption: str, *, width_px: int
) -> Iterator[str]:
    shown_s = 0.0
    for progress in some(steps):
        now_s = time.monotonic()
        if now_s - shown_s >= LOOK_EVERY_S or progress.fraction == 1:
            shown_s = now_s
            images = look(progress, model.decode)
            captions = [f"{caption} {i + 1}" for i in range(len(images))]
            yield figures(images, captions, width_px=width_px)


def surprise_map(model: PixelModel, path: str | None) -> str:
    """The picture as the model sees it beside its surprise at each pixel."""
    pixels = model.pixels(read_upload(path))
    side = model.image_size
    nats = token_surprise(model.network, model.encode(pixels)).reshape(side, side, -1).sum(-1)
    tallest = np.unravel_index(nats.argmax(), nats.shape)
    captions = ["as the model sees it", f"surprise, mean {nats.mean():.2f} nats a pixel"]
    pictures = figures(np.stack([pixels[0], heat_map(nats)]), captions)
    return pictures + (
        f"<p>Dark pixels were expected, bright ones were not. The most surprising, "
        f"{nats.max():.1f} nats, is in row {tallest[0] + 1}, column {tallest[1] + 1}.</p>"
    )


def class_of(model: PixelModel, path: str | None) -> str:
    """The class that the saved probe gives."""
    pixels = model.pixels(read_upload(path))
    return figures(pixels, [model.classify(pixels)[0]])


def figures(images: np.ndarray, captions: list[str], *, width_px: int = LARGE_PX) -> str:
    """Pictures side by side, (N, S, S, 3) uint8, carried within the page itself."""
    parts = []
    for image, caption in zip(images, captions, strict=True):
        data = base64.b64encode(to_png_bytes(image)).decode()
        text = html.escape(caption)
        below = f"<figcaption>{text}</figcaption>" if width_px > SMALL_PX else ""
        parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}">{below}</figure>'
        )
    columns = f"grid-template-columns: repeat(auto-fill, minmax({width_px}px, 1fr))"
    return f'<div class="igpt-pictures" style="{columns}">{"".join(parts)}</div>'


def _whole(value: float, name: str, largest: int) -> int:
    if not 1 <= value <= largest:
        raise UserError(f"{value} {name} are asked for: choose from 1 to {largest}")
    return int(value)


def _seed(value: float | None) -> int:
    return 0 if value is None else int(value)


def _config(temperature: float) -> SampleConfig:
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise UserError(f"temperature is {temperature}: choose from 0 to {MAX_TEMPERATURE:g}")
    return SampleConfig(temperature=temperature)
