"""The linear probe of a model on a data set: features, protocol, joined layers, votes, pixels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np

from igpt import compute
from igpt.config import Pooling
from igpt.files import kept_if_possible
from igpt.images.packed.read import PackedSet
from igpt.images.splits import SPLITS, Split
from igpt.model.head import SavedProbe, voted_accuracy
from igpt.probing.features import EncodedImages, extract_features
from igpt.probing.kmeans import KMeansConfig, KMeansFeatures
from igpt.probing.protocol import (
    Labelled,
    Lazy,
    check_labels,
    join_layers,
    pixel_features,
    window,
)
from igpt.probing.solve import Fit, Solver, SolverName, fit, labels_of
from igpt.progress import Counter, say, ticking
from igpt.published import name_of
from igpt.shipped import is_shipped
from igpt.tokens.tokenizer import ImageArray
from igpt.train.distributed import ALONE, World
from igpt.trained import Trained

N_MASKS = 5
"""Masks whose answers vote on an image (paper §4.6)."""
PROTOCOL = (
    "Logistic regression on {source}; layer and strength chosen on validation, "
    "refitted on train and validation, test looked at once."
)


EXACT = Solver()


class Seen(TypedDict):
    """Which features a classifier sees."""

    normalised: bool
    pooling: Pooling
    precision: compute.Precision


def probe_model(
    model: Trained,
    data: PackedSet,
    *,
    normalised: bool = True,
    pooling: Pooling = "mean",
    precision: compute.Precision = "auto",
    raw_pixels: bool = True,
    n_joined: int = 0,
    solver: SolverName = "lbfgs",
    sgd_steps: int = 10_000,
    n_centers: int = 0,
    features: tuple[Labelled, ...] | None = None,
    save: bool = True,
    world: World = ALONE,
) -> dict[str, Any]:
    """Probe all layers: a `ProbeResult`, and beside it what else was asked for.

    Every kind of features (of all layers, of some side by side, pixels, k-means) is fitted by the
    same solver. A BERT model is also judged by the modal answer of several masks (paper §4.6).

    Args:
        model: what is probed.
        data: labelled images at the model's size.
        normalised: the paper's features; otherwise the raw residual stream.
        pooling: of the features over positions.
        precision: of the network's matrix products.
        raw_pixels: treat the pixels themselves the same, as `raw_pixels`.
        n_joined: adjacent layers to probe side by side, as `joined`; 0: none.
        solver: see `igpt.probing.solve`.
        sgd_steps: updates of sgd.
        n_centers: clusters of k-means features to treat the same, as `kmeans`; 0: none.
        features: of all layers of the three splits, where they are at hand.
        save: keep the chosen classifier in the model's folder, unless it is one that ships.
        world: processes that compute the features together; the first one does the rest.

    Returns:
        The figures; on every process but the first nothing.

    Raises:
        UserError: the images have no labels, or too few of them; said before anything is computed.
    """
    checked_labels(data)
    seen: Seen = {"normalised": normalised, "pooling": pooling, "precision": precision}
    splits = features or tuple(
        labelled_features(model, data, name, **seen, world=world) for name in SPLITS
    )
    solving = Solver(name=solver, sgd_steps=sgd_steps, device=model.device)
    layers = range(model.network.config.n_layer + 1)
    found, figures = fitted(
        model, data, splits, layers, seen=seen, solver=solving, save=save, world=world
    )
    if found is None:
        return {}
    if raw_pixels:
        figures["raw_pixels"] = probe_pixels(data, solver=solving)
    if n_centers:
        figures["kmeans"] = probe_kmeans(data, KMeansConfig(n_centers=n_centers), solver=solving)
    if n_joined:
        taken = window(found.result.layer, len(layers), n_joined)
        figures["joined"] = probe_joined(splits, taken, layers, found.result.layer, solving)
    return figures


def fitted(
    model: Trained,
    data: PackedSet,
    splits: Sequence[Labelled],
    layers: Sequence[int],
    *,
    seen: Seen,
    solver: Solver,
    save: bool,
    world: World,
) -> tuple[Fit | None, dict[str, Any]]:
    """The protocol on features that are at hand, and of BERT the vote of several masks.

    Args:
        model: whose features they are.
        data: of which images.
        splits: train, valid and test; used by the first process only.
        layers: the number of each row of `features`.
        seen: which features they are.
        solver: what fits.
        save: keep the chosen classifier in the model's folder.
        world: all processes, which must call this; only the first one gets anything.
    """
    found = None
    if world.is_first:
        with ticking("probe") as ticker:
            tick = Counter(ticker, len(layers))
            found = fit(*splits, layers=layers, solver=solver, progress=tick)
        if save:
            keep_probe(model, data, found, seen)
    vote = _vote(model, data, found, seen, world) if model.network.objective == "bert" else {}
    if found is None:
        return None, {}
    told = dataclasses.asdict(found.result)
    return found, {"solver": solver.name, "pooling": seen["pooling"], **told, **vote}


def keep_probe(model: Trained, data: PackedSet, found: Fit, seen: Seen) -> None:
    """Write the chosen classifier into the model's folder; one that ships keeps its own."""
    folder, result = model.folder, found.result
    if folder is None or not folder.is_dir() or is_shipped(folder) or found.weights is None:
        return
    assert data.classes is not None and found.biases is not None
    probe = SavedProbe(
        weights=found.weights,
        biases=found.biases,
        layer=result.layer,
        normalised=seen["normalised"],
        pooling=seen["pooling"],
        strength=result.strength,
        labels=result.labels,
        classes=tuple(data.classes[label] for label in result.labels),
        model_digest=model.digest(),
        protocol=PROTOCOL.format(source=name_of(data.source)),
    )
    with kept_if_possible("the probe is"):
        probe.save(folder)


def probe_kmeans(
    data: PackedSet, config: KMeansConfig, *, solver: Solver = EXACT
) -> dict[str, Any]:
    """The same protocol on k-means features of the same images, fitted on the training split."""
    extractor = KMeansFeatures.fit(data.images("train"), config)
    return {**dataclasses.asdict(config), **probe_others(data, extractor.features, solver=solver)}


def probe_others(
    data: PackedSet, features: Callable[[ImageArray], np.ndarray], *, solver: Solver = EXACT
) -> dict[str, Any]:
    """The same protocol on features that no model of ours makes.

    Args:
        data: labelled images.
        features: (N, S, S, 3) uint8 -> (N, D) float32.
        solver: what fits.
    """
    splits = (Labelled(features(data.images(name))[None], labels_of(data, name)) for name in SPLITS)
    return dataclasses.asdict(fit(*splits, layers=[0], solver=solver).result)


def probe_joined(
    splits: Sequence[Labelled],
    taken: Sequence[int],
    layers: Sequence[int],
    around: int,
    solver: Solver,
) -> dict[str, Any]:
    """The same protocol on adjacent layers side by side (paper §4.4).

    Args:
        splits: train, valid and test.
        taken: the layers to put side by side.
        layers: the number of each row of `features`.
        around: the layer that is named in the result.
        solver: what fits.
    """
    rows = [list(layers).index(layer) for layer in taken]
    sides = (Labelled(join_layers(part.features, rows), part.labels) for part in splits)
    result = fit(*sides, layers=[around], solver=solver).result
    return {"layers": list(taken), **dataclasses.asdict(result)}


def probe_pixels(data: PackedSet, *, solver: Solver = EXACT) -> dict[str, Any]:
    """The same protocol on the pixels themselves."""
    splits = (Labelled(lazy_pixels(data.images(name)), labels_of(data, name)) for name in SPLITS)
    return dataclasses.asdict(fit(*splits, layers=[0], solver=solver).result)


def lazy_pixels(images: Any) -> Lazy:
    """Raw pixels as features, read a batch at a time."""
    width = int(np.prod(images.shape[1:]))
    return Lazy(lambda rows: pixel_features(images[rows]), len(images), width)


def _vote(
    model: Trained, data: PackedSet, found: Fit | None, seen: Seen, world: World
) -> dict[str, Any]:
    """Test accuracy of the modal answer over `N_MASKS` masks; the probe saw the first one's.

    Empty where no linear classifier was fitted; `found` is the first process's alone.
    """
    has_one = found is not None and found.weights is not None
    layer = world.from_first(found.result.layer if found is not None and has_one else -1)
    if layer < 0:
        return {}
    features = _behind_masks(model, data, layer, seen, world)
    if found is None or found.weights is None or found.biases is None:
        return {}
    accuracy = voted_accuracy(
        features,
        labels_of(data, "test"),
        weights=found.weights,
        biases=found.biases,
        present=np.array(found.result.labels),
        seed=0,
    )
    return {"vote": {"n_masks": N_MASKS, "test_accuracy": accuracy}}


def _behind_masks(
    model: Trained, data: PackedSet, layer: int, seen: Seen, world: World
) -> np.ndarray:
    """Features of the test images behind each mask: (V, N, D)."""
    tokens = EncodedImages(data.images("test"), model.tokenizer.encode)
    with ticking("features behind other masks") as ticker:
        tick = Counter(ticker, N_MASKS * len(tokens), "images")
        features = [
            extract_features(
                model.network,
                tokens,
                layers=[layer],
                **seen,
                mask_prob=model.facts.mask_prob,
                mask_seed=seed,
                progress=tick,
                world=world,
            )[0]
            for seed in range(N_MASKS)
        ]
    return np.stack(features)


def labelled_features(
    model: Trained,
    data: PackedSet,
    split: Split,
    *,
    normalised: bool = True,
    pooling: Pooling = "mean",
    precision: compute.Precision = "auto",
    progress: Callable[[int], None] | None = None,
    world: World = ALONE,
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
            precision=precision,
            mask_prob=model.facts.mask_prob,
            progress=progress or Counter(ticker, len(images), "images"),
            world=world,
        )
    return Labelled(features, labels)


def checked_labels(data: PackedSet) -> dict[Split, np.ndarray]:
    """The labels of every split, refused before any work where no classifier can come of them.

    Raises:
        UserError: they are missing, too few, or all the same.
    """
    labels = {split: labels_of(data, split) for split in SPLITS}
    for split, of_split in labels.items():
        check_labels(of_split, data.n(split), split)
    for split in ("valid", "test"):
        _tell_of_unseen(data, labels["train"], labels[split], split)
    return labels


def _tell_of_unseen(data: PackedSet, train: np.ndarray, judged: np.ndarray, split: Split) -> None:
    """Name the classes that training lacks: their images can only be counted as wrong."""
    unseen = np.setdiff1d(judged, train)
    if len(unseen) and data.classes is not None:
        n = int(np.isin(judged, unseen).sum())
        names = ", ".join(data.classes[label] for label in unseen[:5].tolist())
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        say(
            f"warning: {n} of {len(judged)} {split} images are of classes that training lacks "
            f"({names}{more}): each counts as wrong; are the names spelled alike?"
        )
