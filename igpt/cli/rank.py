"""`igpt rank`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.images import ImageFiles, Images, MaxBad, read_beside
from igpt.cli.outputs import Model, checked, print_json
from igpt.errors import UserError
from igpt.images.rejects import MAX_BAD

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
    max_bad: MaxBad = MAX_BAD,
    force: bool = False,
    json: bool = False,
) -> None:
    """Put images in order by their nats per token, odd ones first.

    Smooth images are likely whatever they show, so compare images of one kind, and look at the
    maps. A bert model predicts each pixel from most of the others.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        top: how many of the oddest to print and to map.
        maps: picture to write, .png: a row for each of the oddest: as it came, as the model sees
            it, and how much each pixel surprised it; bright did, all rows on one scale.
        max_bad: share of the images that may be left out before it stops.
        force: replace a picture that exists.
        json: print the whole order as one JSON document.
    """
    if top < 1:
        raise UserError(f"--top is {top}: ask for at least 1 image")
    if maps and top > MAX_MAPS:
        raise UserError(f"--top is {top}: at most {MAX_MAPS} fit on one picture of --maps")
    place = checked(maps, "--maps", (".png",), force=force) if maps is not None else None
    files = ImageFiles(images, max_bad=max_bad)

    from igpt import compute
    from igpt.images.sources.names import shown
    from igpt.loading import load
    from igpt.progress import say

    compute.set_threads()
    loaded = load(model)
    nats = nats_of(loaded, files)
    order = sorted(nats, key=lambda i: -nats[i])
    said: dict[str, object] = {
        "model": model,
        "images": [{"path": shown(files.files[i]), "nats_per_token": nats[i]} for i in order],
        "left_out": files.left_out(),
    }
    if place:
        highest = write_maps(loaded, files, order[:top], place)
        said.update(maps=str(place), brightest_nats_per_pixel=highest)
        say(f"{place}: brightest is {highest:.2f} nats a pixel and more")
    if json:
        print_json(said)
        return
    for rank, i in enumerate(order[:top], 1):
        print(f"{rank:>{len(str(top))}}  {nats[i]:.3f}  {shown(files.files[i])}")
    if len(order) > top:
        say(f"{len(order) - top} more: --top shows more, --json all")


def nats_of(model: "PixelModel", files: ImageFiles) -> dict[int, float]:
    """Nats per token of all files that can be read, by their places, some at a time.

    Raises:
        UserError: too many cannot be read.
    """
    import numpy as np

    from igpt.images.taking import warn_of_sizes
    from igpt.progress import ticking

    nats: dict[int, float] = {}
    shorter_px: list[int] = []
    with ticking("rank") as ticker:
        for start in range(0, len(files), IMAGES_AT_ONCE):
            stop = min(start + IMAGES_AT_ONCE, len(files))
            group = list(files.squares(slice(start, stop), model.image_size))
            if group:
                values = map(float, model.nats(np.stack([made for _, made, _ in group])))
                nats.update(zip((i for i, _, _ in group), values, strict=True))
            shorter_px += [px for _, _, px in group]
            ticker.update(stop, len(files), "images")
    files.say_left_out()
    warn_of_sizes(shorter_px, model.image_size, source_px=model.source_px)
    return nats


def write_maps(model: "PixelModel", files: ImageFiles, chosen: Sequence[int], place: Path) -> float:
    """Write the surprise of some images; returns the nats a pixel that are brightest."""
    import numpy as np

    from igpt.files import write_bytes
    from igpt.generate.pictures import beside, heat_map
    from igpt.images.grid import to_png_bytes

    read = [read_beside(model, files, rows=slice(i, i + 1)) for i in chosen]
    originals = [shown for _, framed, _ in read for shown in framed]
    inputs = np.concatenate([squares for _, _, squares in read])
    nats = model.surprise(inputs)  # (n, S, S)
    highest = float(np.percentile(nats, 99))
    seen = model.decode(model.encode(inputs))  # in the colours that it knows
    cells = np.stack([seen, heat_map(nats, highest=highest)], 1)  # (n, 2, S, S, 3)
    titles = ["original", "as the model sees it", f"surprise, brightest: {highest:.1f} nats"]
    write_bytes(place, to_png_bytes(beside(originals, cells, titles=titles)))
    return highest
