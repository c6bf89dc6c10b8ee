"""`igpt classify`."""

import json as json_format

from igpt.cli.arguments import Model
from igpt.cli.images import FileImages, Images, image_files
from igpt.errors import UserError


def classify(model: Model, images: Images, *, top: int = 1, json: bool = False) -> None:
    """Name what is on images, by the probe that `igpt probe` saved with the model.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        top: likeliest classes to print for each.
        json: print the result as one JSON document.
    """
    files = image_files(images)

    import numpy as np

    from igpt import compute
    from igpt.pixelmodel import load
    from igpt.probe.features import EncodedImages, extract_features

    compute.set_threads()
    loaded = load(model)
    probe = loaded.probe()
    if probe is None:
        raise UserError(f"{model} has no probe: run `igpt probe MODEL DATA` first")
    if not 1 <= top <= len(probe.classes):
        raise UserError(f"--top is {top}: choose from 1 to {len(probe.classes)} classes")
    features = extract_features(
        loaded.network,
        EncodedImages(FileImages(files, loaded.image_size), loaded.tokenizer.encode),
        layers=[probe.layer],
        normalised=probe.normalised,
        pooling=probe.pooling,
        mask_prob=loaded.facts.mask_prob,
        keep=False,
    )[0]
    shares = np.exp(probe.log_prob(features))  # (N, C)
    rows = [
        (str(file), {probe.classes[code]: float(row[code]) for code in row.argsort()[::-1][:top]})
        for file, row in zip(files, shares, strict=True)
    ]
    if json:
        named = [{"path": path, "classes": classes} for path, classes in rows]
        print(json_format.dumps({"model": model, "layer": probe.layer, "images": named}))
        return
    for path, classes in rows:
        print(path, *(f"{name} {share:.1%}" for name, share in classes.items()), sep="  ")
