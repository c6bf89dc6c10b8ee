"""`igpt embed`."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.images import FileImages, ImageFiles, Images, MaxBad
from igpt.cli.outputs import Model, checked, print_json
from igpt.config import Pooling
from igpt.images.rejects import MAX_BAD

if TYPE_CHECKING:
    from igpt.pixelmodel import PixelModel
    from igpt.train.distributed import World
    from igpt.trained import FeatureChoice

ENDINGS = (".npz", ".parquet")


def embed(
    model: Model,
    images: Images,
    *,
    out: str = "features.npz",
    layer: int | None = None,
    pooling: Pooling | None = None,
    raw_residual: bool = False,
    max_bad: MaxBad = MAX_BAD,
    force: bool = False,
    json: bool = False,
) -> None:
    """Features of images to a file: the path, the label and the vector of each.

    The label is the name of the folder that an image lies in. Without options the features are
    those that the saved probe reads.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        out: file to write, .npz (arrays path, label, vector) or .parquet (columns of these names).
        layer: from 0 to L; none: the saved probe's, or the middle one where none is saved.
        pooling: over positions: mean, the paper's, or bands (five numbers a channel); none: the
            saved probe's at its layer, else mean.
        raw_residual: pool the residual stream itself in place of the paper's normalised features.
        max_bad: share of the images that may be left out before it stops.
        force: replace a file that exists.
        json: print what was written as one JSON document.
    """
    path = checked(out, "--out", ENDINGS, force=force)
    files = ImageFiles(images, max_bad=max_bad)

    from igpt import compute
    from igpt.loading import load
    from igpt.train.distributed import joined

    compute.set_threads()
    with joined() as world:
        loaded = load(model)
        chosen = loaded.feature_choice(
            "best" if layer is None else layer, pooling, normalised=False if raw_residual else None
        )
        pictures = FileImages(files, loaded)
        _write(path, files, pictures, loaded, chosen, world)
    if not world.is_first:
        return
    pictures.finish()
    written = len(files) - len(files.bad)
    said = {
        "out": str(path),
        "images": written,
        "layer": chosen.layer,
        "pooling": chosen.pooling,
        "width": chosen.width,
        "left_out": files.left_out(),
    }
    if json:
        print_json(said)
    else:
        kind = f"layer {chosen.layer}, pooled by {chosen.pooling}"
        plural = "" if written == 1 else "s"
        print(f"{path}: {written} vector{plural} of {chosen.width} numbers, {kind}")


def _write(
    path: Path,
    files: ImageFiles,
    pictures: FileImages,
    model: "PixelModel",
    chosen: "FeatureChoice",
    world: "World",
) -> None:
    """Have all processes compute the features, and the first one write them."""
    from igpt.images.sources.names import shown
    from igpt.probing.features import EncodedImages, stream_features
    from igpt.probing.vectors import writing_vectors
    from igpt.progress import Counter, ticking

    with ticking("features") as ticker, contextlib.ExitStack() as held:
        target: Any = None
        if world.is_first:
            names = [shown(file) for file in files.files]
            labels = [shown(_folder_name(file)) for file in files.files]
            target = held.enter_context(writing_vectors(path, names, labels, chosen.width))
        stream_features(
            target,
            model.network.in_float32(),
            EncodedImages(pictures, model.tokenizer.encode),
            layers=[chosen.layer],
            normalised=chosen.normalised,
            pooling=chosen.pooling,
            mask_prob=model.facts.mask_prob,
            is_good=pictures.is_good,
            progress=Counter(ticker, len(files), "images"),
            world=world,
        )
        pictures.gather(world)


def _folder_name(file: Path) -> str:
    """Name of the folder that a file lies in; of a link, where the link lies."""
    return Path(os.path.abspath(file)).parent.name  # noqa: PTH100 - resolves no link
