"""`igpt rank`."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import Model
from igpt.cli.images import Images, image_files, read_beside
from igpt.cli.outputs import checked
from igpt.errors import UserError

if TYPE_CHECKING:
    from igpt.pixelmodel import PixelModel

MAX_MAPS = 64
IMAGES_AT_ONCE = 64


def rank(
    model: Model,
    images: Images,
    *,
    top: int = 20,
    maps: str | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Put images in order by their nats per token, odd ones first.

    Smooth images are likely whatever they show, so compare images of one kind, and look at the
    maps. A bert model predicts each pixel from most of the others. Unreadable files are left out
    with a warning.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        top: how many of the oddest to print and to map.
        maps: picture to write, .png: a row for each of the oddest: as it came, as the model sees
            it, and how much each pixel surprised it; bright did, all rows on one scale.
        force: replace a picture that exists.
        json: print the whole order as one JSON document.
    """
    if top < 1:
        raise UserError(f"--top is {top}: ask for at least 1 image")
    if maps and top > MAX_MAPS:
        raise UserError(f"--top is {top}: at most {MAX_MAPS} fit on one picture of --maps")
    place = checked(maps, "--maps", (".png",), force=force) if maps else None
    files = image_files(images)

    from igpt import compute
    from igpt.pixelmodel import load
    from igpt.progress import say

    compute.set_threads()
    loaded = load(model)
    nats = nats_of(loaded, files)
    order = sorted(nats, key=lambda path: -nats[path])
    said: dict[str, object] = {
        "model": model,
        "images": [{"path": str(path), "nats_per_token": nats[path]} for path in order],
        "left_out": [str(path) for path in files if path not in nats],
    }
    if place:
        highest = write_maps(loaded, order[:top], place)
        said.update(maps=str(place), brightest_nats_per_pixel=highest)
        say(f"{place}: brightest is {highest:.2f} nats a pixel and more")
    if json:
        print(json_format.dumps(said))
        return
    for i, path in enumerate(order[:top]):
        print(f"{i + 1:>{len(str(top))}}  {nats[path]:.3f}  {path}")
    if len(order) > top:
        say(f"{len(order) - top} more: --top shows more, --json all")


def nats_of(model: "PixelModel", files: Sequence[Path]) -> dict[Path, float]:
    """Nats per token of all files that can be read, some at a time.

    Raises:
        UserError: none can be read; the first one's reason.
    """
    from igpt.images.decode import read_image
    from igpt.images.taking import square, warn_of_sizes
    from igpt.progress import say, ticking

    nats: dict[Path, float] = {}
    reasons: list[UserError] = []
    shorter_px: list[int] = []
    with ticking("rank") as ticker:
        for start in range(0, len(files), IMAGES_AT_ONCE):
            group, pixels = [], []
            for path in files[start : start + IMAGES_AT_ONCE]:
                try:
                    image = read_image(path)
                    pixels.append(square(image, model.image_size))
                    shorter_px.append(min(image.shape[:2]))
                    group.append(path)
                except UserError as reason:
                    reasons.append(reason)
                    say(f"igpt: warning: left out: {reason}")
            if group:
                values = map(float, model.nats(pixels))
                nats.update(zip(group, values, strict=True))
            ticker.update(start + len(files[start : start + IMAGES_AT_ONCE]), len(files), "images")
    if not nats:
        raise reasons[0]
    warn_of_sizes(shorter_px, model.image_size)
    return nats


def write_maps(model: "PixelModel", files: Sequence[Path], place: Path) -> float:
    """Write the surprise of some images; returns the nats a pixel that are brightest."""
    import numpy as np

    from igpt.files import write_bytes
    from igpt.generate.pictures import beside, heat_map
    from igpt.images.grid import to_png_bytes

    originals, inputs = read_beside(model, files, warn=False)
    nats = model.surprise(inputs)  # (n, S, S)
    highest = float(np.percentile(nats, 99))
    seen = model.decode(model.encode(inputs))  # in the colours that it knows
    cells = np.stack([seen, heat_map(nats, highest=highest)], 1)  # (n, 2, S, S, 3)
    titles = ["original", "as the model sees it", f"surprise, white: {highest:.1f} nats"]
    write_bytes(place, to_png_bytes(beside(originals, cells, titles=titles)))
    return highest
