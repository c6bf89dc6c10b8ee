"""`igpt classify`."""

from igpt.cli.images import FileImages, ImageFiles, Images, MaxBad
from igpt.cli.outputs import Model, print_json
from igpt.errors import UserError
from igpt.images.rejects import MAX_BAD


def classify(
    model: Model, images: Images, *, top: int = 1, max_bad: MaxBad = MAX_BAD, json: bool = False
) -> None:
    """Name what is on images, by the probe that `igpt probe` saved with the model.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        top: likeliest classes to print for each.
        max_bad: share of the images that may be left out before it stops.
        json: print the result as one JSON document.
    """
    files = ImageFiles(images, max_bad=max_bad)

    import numpy as np

    from igpt import compute
    from igpt.images.sources.names import shown
    from igpt.loading import load
    from igpt.probing.features import EncodedImages, extract_features

    compute.set_threads()
    loaded = load(model)
    probe = loaded.probe()
    if probe is None:
        raise UserError(f"{model} has no probe: run `igpt probe MODEL DATA` first")
    if not 1 <= top <= len(probe.classes):
        raise UserError(f"--top is {top}: choose from 1 to {len(probe.classes)} classes")
    pictures = FileImages(files, loaded)
    features = extract_features(
        loaded.network.in_float32(),
        EncodedImages(pictures, loaded.tokenizer.encode),
        layers=[probe.layer],
        normalised=probe.normalised,
        pooling=probe.pooling,
        mask_prob=loaded.facts.mask_prob,
        keep=False,
    )[0]
    pictures.finish()
    shares = np.exp(probe.log_prob(features))  # (N, C)
    rows = [
        (shown(file), {probe.classes[code]: float(row[code]) for code in row.argsort()[::-1][:top]})
        for file, row, is_good in zip(files.files, shares, pictures.is_good, strict=True)
        if is_good
    ]
    if json:
        named = [{"path": path, "classes": classes} for path, classes in rows]
        said = {"model": model, "layer": probe.layer, "images": named}
        print_json({**said, "left_out": files.left_out()})
        return
    for path, classes in rows:
        print(path, *(f"{name} {share:.1%}" for name, share in classes.items()), sep="  ")
