"""`igpt complete`."""

import dataclasses
import time
from typing import TYPE_CHECKING, Literal

from igpt.cli.images import ImageFiles, Images, MaxBad, read_beside
from igpt.cli.outputs import Model, Outputs, watch
from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.images.rejects import MAX_BAD

if TYPE_CHECKING:
    import numpy as np

DEFAULT = SampleConfig()
KEEP_ROWS = 0.5
MAX_IMAGES = 256


def complete(
    model: Model,
    images: Images,
    *,
    keep_rows: float | None = None,
    mask: str | None = None,
    n: int = 4,
    seed: int = 0,
    temperature: float = DEFAULT.temperature,
    top_k: int | None = DEFAULT.top_k,
    top_p: float | None = DEFAULT.top_p,
    out: str = "completions.png",
    gif: str | None = None,
    tokens: str | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    max_bad: MaxBad = MAX_BAD,
    force: bool = False,
    json: bool = False,
) -> None:
    """Draw the missing part of images, several times, beside the originals.

    An ar model sees, at each pixel, what stands above it and to its left; a bert model sees all.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below; each is cut to its central
            square and resized.
        keep_rows: share of the rows that is given, from the top; 0.5 unless a mask is given.
        mask: picture of what to draw anew: white is predicted, black is given; a pixel of the
            model is predicted if any of it is white.
        n: completions of each image.
        seed: other seeds give other completions.
        temperature: divides the logits; 1 is the paper's, 0 always takes the likeliest colour.
        top_k: draw among the k likeliest colours only.
        top_p: draw among the likeliest colours that hold this share of the probability.
        out: picture to write, .png: a row for each image.
        gif: animation of the drawing to write, .gif or .webp.
        tokens: tokens to write, .npz: tokens (images, n, T), keep (T,).
        precision: type of the matrix products; auto: bf16 where the processor has it (ar).
        max_bad: share of the images that may be left out before it stops.
        force: replace files that exist.
        json: print the result as one JSON document.
    """
    outputs = Outputs.checked(out=out, gif=gif, tokens=tokens, force=force)
    config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    files = ImageFiles(images, max_bad=max_bad, at_most=MAX_IMAGES)

    from igpt.model import native

    native.build_ahead("decode")
    from igpt import compute
    from igpt.generate.complete import completing
    from igpt.generate.pictures import cell_px, sheet
    from igpt.images.sources.names import shown
    from igpt.loading import load

    compute.set_threads()
    loaded = load(model)
    keep = _keep(loaded.image_size, keep_rows, mask)  # (S, S) bool
    outputs.check_size(len(files) * (n + 3) * cell_px(loaded.image_size) ** 2)
    places, originals, inputs = read_beside(loaded, files)
    files.say_left_out()
    kept, given = loaded.token_mask(keep), loaded.encode(inputs)
    seen = loaded.decode(given)  # in the colours that it knows
    start_s = time.monotonic()
    steps = completing(
        loaded.network, given, kept, n=n, seed=seed, config=config, precision=precision
    )
    last, looks = watch(steps, loaded.decode, label="complete", record=gif is not None)
    seconds = time.monotonic() - start_s
    drawn = [images.reshape(len(places), n, *images.shape[1:]) for images in looks]
    result = last.tokens.reshape(len(places), n, -1)
    outputs.write(
        sheet(originals, seen, keep, loaded.decode(result)),
        [sheet(originals, seen, keep, completions) for completions in drawn],
        tokens=result,
        keep=kept,
    )
    facts: dict[str, object] = {"model": model, "images": [shown(files.files[i]) for i in places]}
    facts |= {"left_out": files.left_out(), "n": n, "seed": seed, **dataclasses.asdict(config)}
    outputs.report({**facts, "seconds": round(seconds, 3)}, json=json)


def _keep(image_size: int, keep_rows: float | None, mask: str | None) -> "np.ndarray":
    """What is given: (S, S) bool. A mask is cut as the images are; any mark hides its cell."""
    from igpt.generate.complete import any_in_cell, rows_kept
    from igpt.images.crop import center_square
    from igpt.images.decode import read_image

    if mask is None:
        return rows_kept(image_size, KEEP_ROWS if keep_rows is None else keep_rows)
    if keep_rows is not None:
        raise UserError("both --mask and --keep-rows are given: choose one")
    return ~any_in_cell(center_square(read_image(mask)).mean(-1) > 127, image_size)
