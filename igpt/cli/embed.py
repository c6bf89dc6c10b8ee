"""`igpt embed`."""

import json as json_format

from igpt.cli.arguments import Model
from igpt.cli.images import FileImages, Images, image_files
from igpt.cli.outputs import checked

ENDINGS = (".npz", ".parquet")


def embed(
    model: Model,
    images: Images,
    *,
    out: str = "features.npz",
    layer: int | None = None,
    raw_residual: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Features of images to a file: the path, the label and the vector of each.

    The label is the name of the folder that an image lies in.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        out: file to write, .npz (arrays path, label, vector) or .parquet (columns of these names).
        layer: from 0 to L; none: the saved probe's, or the middle one where none is saved.
        raw_residual: pool the residual stream itself in place of the paper's normalised features.
        force: replace a file that exists.
        json: print what was written as one JSON document.
    """
    path = checked(out, "--out", ENDINGS, force=force)
    files = image_files(images)

    from igpt import compute
    from igpt.evaluate.vectors import writing_vectors
    from igpt.pixelmodel import load
    from igpt.probe.features import EncodedImages, stream_features
    from igpt.progress import Counter, ticking

    compute.set_threads()
    loaded = load(model)
    chosen = loaded.best_layer() if layer is None else layer
    names = [str(file) for file in files]
    labels = [file.resolve().parent.name for file in files]
    width = loaded.network.config.n_embd
    with (
        ticking("features") as ticker,
        writing_vectors(path, names, labels, width) as target,
    ):
        stream_features(
            target,
            loaded.network,
            EncodedImages(FileImages(files, loaded.image_size), loaded.tokenizer.encode),
            layers=[chosen],
            normalised=not raw_residual,
            mask_prob=loaded.facts.mask_prob,
            progress=Counter(ticker, len(files), "images"),
        )
    said = {"out": str(path), "images": len(files), "layer": chosen, "width": width}
    if json:
        print(json_format.dumps(said))
    else:
        print(f"{path}: {len(files)} vectors of {width} numbers, layer {chosen}")
