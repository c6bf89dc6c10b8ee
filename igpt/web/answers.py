"""What the page answers, as pieces of a page; nothing here knows of Gradio."""

import base64
import binascii
import html
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeGuard

import numpy as np

from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.generate.complete import completing
from igpt.generate.pictures import heat_map, look, some
from igpt.generate.sample import Progress, sampling
from igpt.images.decode import open_image, read_image
from igpt.images.grid import to_png_bytes
from igpt.images.rejects import read_bytes
from igpt.images.taking import square
from igpt.model.head import SavedProbe
from igpt.pixelmodel import PixelModel

MAX_COMPLETIONS = 8
MAX_SAMPLES = 64
MAX_CLASSES = 5
MAX_TEMPERATURE = 3.0
MAX_UPLOAD_PIXELS = 2**25
MAX_SEED = 10**15 - 1
# Faster changes than this are lost on the eye and on a slow line.
LOOK_EVERY_S = 0.1
# Least width of one picture on the page.
SMALL_PX, MEDIUM_PX, LARGE_PX = 64, 96, 220


def read_upload(path: str | None) -> np.ndarray:
    """An uploaded picture: (H, W, 3) uint8.

    Raises:
        UserError: there is none, it is no image, or it has more than `MAX_UPLOAD_PIXELS`.
    """
    if path is None:
        raise UserError("there is no picture yet: upload one or pick an example")
    try:
        with open_image(read_bytes(Path(path))) as image:
            n_pixels = image.width * image.height
    except UserError as error:
        raise UserError(f"the picture cannot be read: {error}") from error
    if n_pixels > MAX_UPLOAD_PIXELS:
        raise UserError(
            f"the picture has {n_pixels / 1e6:.0f} million pixels: "
            f"choose one of at most {MAX_UPLOAD_PIXELS / 1e6:.0f} million"
        )
    return read_image(path)


def as_seen(model: PixelModel, path: str | None) -> np.ndarray:
    """An upload at the model's size: (S, S, 3) uint8."""
    return square(read_upload(path), model.image_size)


def opened(model: PixelModel, path: str | None, rows: float) -> str:
    """The painter's value for an upload."""
    if path is None:
        return ""
    pixels = as_seen(model, path)
    return Canvas(pixels, _rows(model, rows)).dump()


def rows_hidden(model: PixelModel, text: str | None, rows: float) -> str:
    """The painter's value with another number of rows kept; what was painted is undone."""
    if not text:
        return ""
    return Canvas(Canvas.parse(text, model.image_size).pixels, _rows(model, rows)).dump()


def _rows(model: PixelModel, rows: float) -> np.ndarray:
    side = model.image_size
    n = _whole(rows, "rows", side)
    return np.repeat(np.arange(side)[:, None] < n, side, axis=1)  # (S, S)


def completions(
    model: PixelModel, text: str | None, n: float, temperature: float, seed: float | None
) -> Iterator[str]:
    """Completions as they are drawn, as pieces of a page."""
    canvas = Canvas.parse(text, model.image_size)
    tokens = model.encode(canvas.pixels)
    steps = completing(
        model.network,
        tokens,
        model.token_mask(canvas.keep),
        n=_whole(n, "completions", MAX_COMPLETIONS),
        seed=_seed(seed),
        config=_config(temperature),
    )
    original = model.decode(tokens)[0]
    return _seen(model, steps, "completion", width_px=MEDIUM_PX, original=original)


def samples(model: PixelModel, n: float, temperature: float, seed: float | None) -> Iterator[str]:
    """Samples as they are drawn, as pieces of a page."""
    count = _whole(n, "images", MAX_SAMPLES)
    steps = sampling(model.network, count, seed=_seed(seed), config=_config(temperature))
    return _seen(model, steps, "sample", width_px=SMALL_PX)


def _seen(
    model: PixelModel,
    steps: Iterator[Progress],
    caption: str,
    *,
    width_px: int,
    original: np.ndarray | None = None,
) -> Iterator[str]:
    """Looks at pictures on the way; an original, (S, S, 3) uint8, comes last beside them."""
    shown_s = 0.0
    for progress in some(steps):
        now_s = time.monotonic()
        if now_s - shown_s >= LOOK_EVERY_S or progress.fraction == 1:
            shown_s = now_s
            images = list(look(progress, model.decode))
            captions = [f"{caption} {i + 1}" for i in range(len(images))]
            if original is not None:
                images.append(original)
                captions.append("original")
            yield figures(images, captions, width_px=width_px)


def surprise_map(model: PixelModel, path: str | None) -> str:
    """The picture as the model sees it beside its surprise at each pixel."""
    pixels = as_seen(model, path)
    nats = model.surprise(pixels)[0]  # (S, S)
    tallest = np.unravel_index(nats.argmax(), nats.shape)
    captions = ["as the model sees it", f"surprise, mean {nats.mean():.2f} nats a pixel"]
    pictures = figures([pixels, heat_map(nats)], captions)
    return pictures + (
        f"<p>Dark pixels were expected, bright ones were not. The most surprising, "
        f"{nats.max():.1f} nats, is in row {tallest[0] + 1}, column {tallest[1] + 1}.</p>"
    )


def class_of(model: PixelModel, path: str | None) -> str:
    """The likeliest classes by the saved probe."""
    pixels = as_seen(model, path)
    bars = "".join(
        f"<tr><td>{html.escape(name)}</td><td><meter value={share:.4f}></meter></td>"
        f"<td>{share:.1%}</td></tr>"
        for name, share in likeliest(model, pixels)
    )
    probe = _probe_of(model)
    note = f"The probe knows {len(probe.classes)} classes and always answers with one of them."
    picture = figures([pixels], ["as the model sees it"])
    return f"{picture}<table class=igpt-classes>{bars}</table>{hint(note)}"


def likeliest(model: PixelModel, pixels: np.ndarray) -> list[tuple[str, float]]:
    """Names and probabilities of at most `MAX_CLASSES` classes of one picture, likeliest first."""
    probe = _probe_of(model)
    features = model.features(
        pixels, layer=probe.layer, normalised=probe.normalised, pooling=probe.pooling
    )
    shares = np.exp(probe.log_prob(features))[0]  # (C,)
    order = shares.argsort()[::-1][:MAX_CLASSES]
    return [(probe.classes[code], float(shares[code])) for code in order]


def _probe_of(model: PixelModel) -> SavedProbe:
    probe = model.probe()
    if probe is None:
        raise UserError("this model has no probe: run `igpt probe MODEL DATA` first")
    return probe


def hint(text: str) -> str:
    """What stands where an answer will be."""
    return f'<p class="igpt-hint">{html.escape(text)}</p>'


def figures(images: Sequence[np.ndarray], captions: list[str], *, width_px: int = LARGE_PX) -> str:
    """Pictures side by side, (S, S, 3) uint8 each, carried within the page itself."""
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


def _whole(value: object, name: str, largest: int) -> int:
    if not (_is_number(value) and 1 <= value <= largest):
        raise UserError(f"{value} {name} are asked for: choose from 1 to {largest}")
    return int(value)


def _seed(value: object) -> int:
    if value is None:
        return 0
    if not (_is_number(value) and abs(value) <= MAX_SEED):
        raise UserError(f"the seed is {value}: choose a whole number of at most 15 digits")
    return int(value)


def _config(temperature: object) -> SampleConfig:
    if not (_is_number(temperature) and 0 <= temperature <= MAX_TEMPERATURE):
        raise UserError(f"temperature is {temperature}: choose from 0 to {MAX_TEMPERATURE:g}")
    return SampleConfig(temperature=temperature)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a browser sent a number; it may send anything."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture at the model's size and which of its pixels are to be drawn anew."""

    pixels: np.ndarray
    """(S, S, 3) uint8."""
    keep: np.ndarray
    """(S, S) bool: False where a pixel is hidden."""

    def dump(self) -> str:
        """The text that `painter.js` shows."""
        return json.dumps(
            {
                "side": len(self.pixels),
                "pixels": base64.b64encode(self.pixels.tobytes()).decode(),
                "hidden": "".join("10"[int(kept)] for kept in self.keep.reshape(-1)),
            }
        )

    @classmethod
    def parse(cls, text: str | None, side: int) -> Self:
        """What a browser sent.

        Args:
            text: from `dump`, or from the painter.
            side: the model's S.

        Raises:
            UserError: there is no picture, or it is not one of this model's size.
        """
        if not text:
            raise UserError("there is no picture yet: upload one or pick an example")
        try:
            value = json.loads(text)
            raw = base64.b64decode(value["pixels"], validate=True)
            hidden = str(value["hidden"])
            if len(hidden) != side**2 or not set(hidden) <= {"0", "1"}:
                raise ValueError("mask")
            pixels = np.frombuffer(raw, np.uint8).reshape(side, side, 3)
        except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
            raise UserError("the picture is damaged: upload it again") from error
        keep = np.frombuffer(hidden.encode(), np.uint8) == ord("0")
        return cls(pixels, keep.reshape(side, side))
