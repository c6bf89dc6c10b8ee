"""What needs no trained Transformer: simple models of the same tokens, and label-free rivals.

    python records/rivals.py MODEL [--simple [AUTHORS.npy] | --cost [NAME ...] | AUTHORS.npy]

At the size and under the palette of a shipped model, into `shipped/MODEL/rivals.json`, a part at a
time; what is there is not measured again. --simple: what only counts, and k-means. --cost: what
takes some minutes, each in one thread: patches, scattering, contrast (SimCLR), supervised. The
probes look at CIFAR-10's test split once, with layer and strength chosen on validation, as for the
model.
"""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from card import COUNTS
from contrast import ContrastConfig, train_contrast
from keeping import N_JOINED, SHIPPED, measured, read_figures
from measure import JUDGED, N_SUBSETS, few_labels
from patches import PatchesConfig, patch_features
from pixelcnn import PixelCNNConfig, pixelcnn_nats
from scattering import ScatteringConfig, scattering_features

from igpt import compute
from igpt.config import N_POOLED
from igpt.evaluation.likelihood import Counts, gzip_nats_per_token
from igpt.evaluation.wideresnet import WideResNetConfig, train_wide_resnet
from igpt.images.grid import to_png_bytes
from igpt.images.packed.read import PackedSet
from igpt.images.prepare import open_data
from igpt.images.splits import Split
from igpt.loading import load
from igpt.probing.exact import probe_kmeans, probe_others
from igpt.probing.features import EncodedImages
from igpt.probing.fewlabel import evaluate_supervised
from igpt.probing.kmeans import KMeansConfig, KMeansFeatures
from igpt.probing.protocol import Labelled, LabelledImages
from igpt.probing.solve import labels_of
from igpt.tokens.palette import Palette

FITTED: tuple[Split, ...] = ("train", "test")
N_PNG = 2000
N_CENTERS = (100, 400)
# Numbers that k-means gives a centre.
N_QUADRANTS = 4
FEW_LABELS = (4, 25)
# Updates of the Wide ResNet with all labels: about 20 minutes of one core at 32 x 32.
N_SUPERVISED_STEPS = 2000
# Updates of each Wide ResNet: all ten take 5 (idle) to 7 (busy) minutes of one core together.
N_RESNET_STEPS = 500


def simple_nats(data: PackedSet, palette: Palette) -> dict[str, float | None]:
    """Nats per token of the test split by models that only count, under one palette."""
    tokens = {name: EncodedImages(data.images(name), palette.encode) for name in FITTED}
    counts = Counts.of(tokens["train"], n_colors=palette.n_colors, stride=1)
    return {
        "unigram": counts.unigram_nats(tokens["test"]),
        "bigram": counts.bigram_nats(tokens["test"]),
        "gzip": gzip_nats_per_token(tokens["test"]),
        "png": png_nats(data, palette),
    }


def png_nats(data: PackedSet, palette: Palette) -> float:
    """Nats a pixel of PNG files of the same reduced colours, headers left out."""
    images = palette.decode(palette.encode(data.images("test")[:N_PNG]))
    empty = len(to_png_bytes(np.zeros((1, 1, 3), np.uint8)))
    n_bytes = sum(len(to_png_bytes(image)) - empty for image in images)
    return 8 * n_bytes * math.log(2) / (N_PNG * data.image_size**2)


def pixelcnn(data: PackedSet, palette: Palette) -> dict[str, Any]:
    """Nats per token of a small PixelCNN, trained here."""
    train, test = (palette.encode(data.images(name)[:]) for name in FITTED)
    config = PixelCNNConfig()
    nats = pixelcnn_nats(train, test[:N_PNG], n_colors=palette.n_colors, config=config)
    return {"nats_per_token": nats, **dataclasses.asdict(config)}


def n_classes(data: PackedSet) -> int:
    """Of labelled images."""
    assert data.classes is not None
    return len(data.classes)


def wide_resnet(data: PackedSet, count: int) -> dict[str, Any]:
    """Accuracy of a Wide ResNet 28-2 from scratch on the subsets that the features' probes see."""
    train, test = (LabelledImages(data.images(name), labels_of(data, name)) for name in FITTED)

    def fit(few: LabelledImages, subset: int) -> Callable[[Any], np.ndarray]:
        config = WideResNetConfig(total_steps=N_RESNET_STEPS, seed=subset)
        return train_wide_resnet(few, n_classes=n_classes(data), config=config)

    result = evaluate_supervised(train, test, fit=fit, labels_per_class=count, n_subsets=N_SUBSETS)
    return {**dataclasses.asdict(result), "steps": N_RESNET_STEPS, "image_size": data.image_size}


def kmeans_few_labels(data: PackedSet) -> dict[str, Any]:
    """Accuracy of k-means features on the subsets that the model's features are judged by."""
    config = KMeansConfig()
    extractor = KMeansFeatures.fit(data.images("train"), config)
    train, test = (
        Labelled(extractor.features(data.images(name))[None], labels_of(data, name))
        for name in FITTED
    )
    found = {count: few_labels(train, test, count) for count in COUNTS}
    return {**dataclasses.asdict(config), **{str(count): held for count, held in found.items()}}


def patches(data: PackedSet) -> dict[str, Any]:
    """The probe of a dictionary of patches."""
    config = PatchesConfig()
    extractor = patch_features(data.images("train")[:], config)
    return {**dataclasses.asdict(config), **probe_others(data, extractor)}


def scattering(data: PackedSet) -> dict[str, Any]:
    """The probe of a cascade of wavelets."""
    config = ScatteringConfig()
    extractor = functools.partial(scattering_features, config=config)
    return {**dataclasses.asdict(config), **probe_others(data, extractor)}


def contrast(data: PackedSet) -> dict[str, Any]:
    """The probe of what SimCLR learns in some minutes."""
    config = ContrastConfig()
    features, n_seen = train_contrast(data.images("train")[:], config)
    return {**dataclasses.asdict(config), "images": n_seen, **probe_others(data, features)}


def supervised(data: PackedSet) -> dict[str, Any]:
    """Accuracy of a Wide ResNet 28-2 that is trained on all labels of the training split."""
    config = WideResNetConfig(total_steps=N_SUPERVISED_STEPS, batch_size=64, lr=0.1)
    train = LabelledImages(data.images("train")[:], labels_of(data, "train"))
    classify = train_wide_resnet(train, n_classes=n_classes(data), config=config)
    found = {
        f"{name}_accuracy": float((classify(data.images(name)[:]) == labels_of(data, name)).mean())
        for name in JUDGED
    }
    return {**dataclasses.asdict(config), **found, "n_test": data.n("test")}


COSTLY = {
    "patches": patches,
    "scattering": scattering,
    "contrast": contrast,
    "supervised": supervised,
}


def main(model_name: str, authors: str | None = None, *names: str) -> None:
    """Measure everything, writing after each part."""
    compute.set_threads()
    model = load(model_name)
    results = SHIPPED / model_name / "rivals.json"
    data = open_data("cifar10", image_size=model.image_size, seed=0, valid_fraction=0.1)

    def keep(name: str, of: str, measure: Callable[[], dict[str, Any]]) -> None:
        measured(results, name, measure, of=of)

    if authors == "--cost":
        torch.set_num_threads(1)
        for name in names or COSTLY:
            keep(name, data.digest, functools.partial(COSTLY[name], data))
        return
    assert isinstance(model.tokenizer, Palette)
    palettes = {"ours": model.tokenizer}
    if is_simple := authors == "--simple":
        authors = names[0] if names else None
    if authors is not None:
        palettes["authors"] = Palette.load(authors)
    for name, palette in palettes.items():
        keep(f"nats-{name}", palette.digest, functools.partial(simple_nats, data, palette))
    sets = {"": data}
    banded = N_POOLED["bands"] * model.network.config.n_embd
    equal = [banded // N_QUADRANTS, N_JOINED * banded // N_QUADRANTS]
    probed = read_figures(SHIPPED / model_name / "figures.json").get("probe, mean")
    if probed and (n := probed["n_train"]) < data.n("train"):
        sets[f", {n} images"] = data.at_most(n)  # those that the model's own probe had
    for n_centers, (which, some) in itertools.product((*N_CENTERS, *equal), sets.items()):
        config = KMeansConfig(n_centers=n_centers)
        keep(
            f"kmeans-{n_centers}{which}",
            data.digest,
            functools.partial(probe_kmeans, some, config),
        )
    if is_simple:
        return
    keep("few-labels-kmeans", data.digest, functools.partial(kmeans_few_labels, data))
    for count in FEW_LABELS:
        keep(f"wide-resnet-{count}", data.digest, functools.partial(wide_resnet, data, count))
    ours = palettes["ours"]
    keep("pixelcnn", ours.digest, functools.partial(pixelcnn, data, ours))


if __name__ == "__main__":
    main(*sys.argv[1:])
