"""The linear probe of a model on a data set: features, protocol, joined layers, votes, pixels."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from igpt.config import Pooling
from igpt.errors import UserError
from igpt.files import kept_if_possible
from igpt.images.packed.read import PackedSet
from igpt.images.splits import SPLITS, Split
from igpt.probe.features import EncodedImages, extract_features
from igpt.probe.kmeans import KMeansConfig, KMeansFeatures
from igpt.probe.protocol import (
    Labelled,
    ProbeResult,
    check_labels,
    join_layers,
    pixel_features,
    probe_layers,
)
from igpt.probe.saved import SavedProbe
from igpt.probe.sgd import probe_layers_by_sgd
from igpt.probe.vote import voted_accuracy
from igpt.progress import Counter, ticking
from igpt.shipped import is_shipped

if TYPE_CHECKING:
    from igpt.pixelmodel import PixelModel

Solver = Literal["lbfgs", "sgd"]
N_MASKS = 5
"""Masks whose answers vote on an image (paper §4.6)."""
PROTOCOL = (
    "Logistic regression on {source}; layer and strength chosen on validation, "
    "refitted on train and validation, test looked at once."
)


class _Seen(TypedDict):
    """Which features a classifier sees."""

    normalised: bool
    pooling: Pooling


def probe_model(
    model: "PixelModel",
    data: PackedSet,
    *,
    normalised: bool = True,
    pooling: Pooling = "mean",
    raw_pixels: bool = True,
    n_joined: int = 0,
    solver: Solver = "lbfgs",
    sgd_steps: int = 0,
    n_centers: int = 0,
    features: tuple[Labelled, ...] | None = None,
    save: bool = True,
) -> dict[str, Any]:
    """Probe all layers: a `ProbeResult`, and beside it what else was asked for.

    A BERT model is also judged by the modal answer of several masks (paper §4.6).

    Args:
        model: what is probed.
        data: labelled images at the model's size.
        normalised: the paper's features; otherwise the raw residual stream.
        pooling: of the features over positions.
        raw_pixels: treat the pixels themselves the same, as `raw_pixels`.
        n_joined: adjacent layers to probe side by side, as `joined`; 0: none.
        solver: lbfgs finds the optimum; sgd sees a batch at a time, for sets that are too large.
        sgd_steps: updates for each rate of sgd.
        n_centers: clusters of k-means features to treat the same, as `kmeans`; 0: none.
        features: of all layers of the three splits, where they are at hand.
        save: keep the chosen classifier in the model's folder, unless it is one that ships.

    Raises:
        UserError: the images have no labels, or too few of them; said before anything is computed.
    """
    checked_labels(data)
    splits = features or tuple(
        labelled_features(model, data, name, normalised=normalised, pooling=pooling)
        for name in SPLITS
    )
    layers = range(model.network.config.n_layer + 1)
    result, weights, biases = _fitted(model, splits, layers, solver, sgd_steps)
    seen: _Seen = {"normalised": normalised, "pooling": pooling}
    if save and model.folder is not None and model.folder.is_dir() and not is_shipped(model.folder):
        with kept_if_possible("the probe is"):
            _saved(model, data, result, weights, biases, seen).save(model.folder)
    figures: dict[str, Any] = {"solver": solver, "pooling": pooling, **dataclasses.asdict(result)}
    if raw_pixels:
        figures["raw_pixels"] = probe_pixels(data)
    if n_centers:
        figures["kmeans"] = probe_kmeans(data, KMeansConfig(n_centers=n_centers))
    if n_joined:
        figures["joined"] = _probe_joined(splits, result.layer, n_joined)
    if model.network.objective == "bert":
        figures["vote"] = _voted(model, data, result, weights, biases, seen)
    return figures


def _saved(
    model: "PixelModel",
    data: PackedSet,
    result: ProbeResult,
    weights: np.ndarray,
    biases: np.ndarray,
    seen: _Seen,
) -> SavedProbe:
    """The chosen classifier, with what it must be fed."""
    assert data.classes is not None
    return SavedProbe(
        weights=weights,
        biases=biases,
        layer=result.layer,
        **seen,
        strength=result.strength,
        labels=result.labels,
        classes=tuple(data.classes[label] for label in result.labels),
        model_digest=model.digest(),
        protocol=PROTOCOL.format(source=data.source),
    )


def _fitted(
    model: "PixelModel",
    splits: tuple[Labelled, ...],
    layers: range,
    solver: Solver,
    sgd_steps: int,
) -> tuple[ProbeResult, np.ndarray, np.ndarray]:
    with ticking("probe") as ticker:
        tick = Counter(ticker, len(layers))
        if solver == "lbfgs":
            return probe_layers(*splits, layers=layers, device=model.device, progress=tick)
        return probe_layers_by_sgd(
            *splits, layers=layers, total_steps=sgd_steps, device=model.device, progress=tick
        )


def probe_kmeans(data: PackedSet, config: KMeansConfig) -> dict[str, Any]:
    """The same protocol on k-means features of the same images, fitted on the training split."""
    extractor = KMeansFeatures.fit(data.images("train"), config)
    train, valid, test = (
        Labelled(extractor.features(data.images(name))[None], labels_of(data, name))
        for name in SPLITS
    )
    result, _, _ = probe_layers(train, valid, test, layers=[0])
    return {**dataclasses.asdict(config), **dataclasses.asdict(result)}


def _probe_joined(splits: tuple[Labelled, ...], around: int, n_joined: int) -> dict[str, Any]:
    """The same protocol on adjacent layers side by side (paper §4.4)."""
    pairs = [join_layers(split.features, around, n_joined=n_joined) for split in splits]
    train, valid, test = (
        Labelled(features[None], split.labels)
        for (features, _), split in zip(pairs, splits, strict=True)
    )
    result, _, _ = probe_layers(train, valid, test, layers=[around])
    return {"layers": list(pairs[0][1]), **dataclasses.asdict(result)}


def _voted(
    model: "PixelModel",
    data: PackedSet,
    result: ProbeResult,
    weights: np.ndarray,
    biases: np.ndarray,
    seen: _Seen,
) -> dict[str, Any]:
    """Test accuracy of the modal answer over `N_MASKS` masks; the probe saw the first one's."""
    tokens = EncodedImages(data.images("test"), model.tokenizer.encode)
    features = []
    with ticking("features behind other masks") as ticker:
        tick = Counter(ticker, N_MASKS * len(tokens), "images")
        for seed in range(N_MASKS):
            behind_mask = extract_features(
                model.network,
                tokens,
                layers=[result.layer],
                **seen,
                mask_prob=model.facts.mask_prob,
                mask_seed=seed,
                progress=tick,
            )
            features.append(behind_mask[0])
    accuracy = voted_accuracy(
        np.stack(features),
        labels_of(data, "test"),
        weights=weights,
        biases=biases,
        present=np.array(result.labels),
        seed=0,
    )
    return {"n_masks": N_MASKS, "test_accuracy": accuracy}


def probe_pixels(data: PackedSet) -> dict[str, Any]:
    """The same protocol on the pixels themselves."""
    train, valid, test = (
        Labelled(pixel_features(data.images(name)[:])[None], labels_of(data, name))
        for name in SPLITS
    )
    result, _, _ = probe_layers(train, valid, test, layers=[0])
    return dataclasses.asdict(result)


def labelled_features(
    model: "PixelModel",
    data: PackedSet,
    split: Split,
    *,
    normalised: bool = True,
    pooling: Pooling = "mean",
    progress: Callable[[int], None] | None = None,
) -> Labelled:
    """Features of all layers of a split, with its labels; kept in the cache folder.

    Raises:
        UserError: the images have no labels.
    """
    labels = labels_of(data, split)
    images = data.images(split)
    with ticking(f"features, {split}") as ticker:
        features = extract_features(
            model.network,
            EncodedImages(images, model.tokenizer.encode),
            normalised=normalised,
            pooling=pooling,
            mask_prob=model.facts.mask_prob,
            progress=progress or Counter(ticker, len(images), "images"),
        )
    return Labelled(features, labels)


def labels_of(data: PackedSet, split: Split) -> np.ndarray:
    """The labels of a split: (n,) int64.

    Raises:
        UserError: it has none.
    """
    labels = data.labels(split)
    if labels is None:
        raise UserError(f"{data.source} has no labels: give one folder a class, or a labelled set")
    return labels


def checked_labels(data: PackedSet) -> dict[Split, np.ndarray]:
    """The labels of every split, refused before any work where no classifier can come of them.

    Raises:
        UserError: they are missing, too few, or all the same.
    """
    labels = {split: labels_of(data, split) for split in SPLITS}
    for split, of_split in labels.items():
        check_labels(of_split, data.n(split), split)
    return labels
