"""The probe of sets whose features fit neither in memory nor, of all layers, on a disk.

Two passes, in bounded memory, shared by the ranks of a job:

1. Ridge regression ranks the layers. Each rank adds X^T X and X^T Y of every layer in float64
   over its share of some training images; one all-reduce; then a single eigendecomposition a layer
   gives the weights for every strength, which are judged on validation as its images pass.
2. The features of the `FINALISTS` best layers, and of the best one's neighbours where layers are
   joined, are kept in float16; one of the solvers of `igpt.probing.solve` fits them, and chooses.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igpt import compute, files, streams
from igpt.config import N_POOLED
from igpt.images.packed.read import PackedSet
from igpt.images.splits import SPLITS, Split
from igpt.model.sizes import forward_flops
from igpt.probing.exact import (
    Seen,
    checked_labels,
    fitted,
    probe_joined,
    probe_pixels,
)
from igpt.probing.features import EncodedImages, stream_features
from igpt.probing.protocol import Labelled, LayerScore, best_score, window
from igpt.probing.solve import Solver, SolverName, labels_of
from igpt.progress import Counter, ticking
from igpt.train.distributed import ALONE, World
from igpt.trained import Trained

LAYER_IMAGES = 20_000
"""Default training images that choose the layer: more moved no choice that was tried."""
FINALISTS = 3
"""Layers between which the solver chooses: ridge regression alone was off by two on small sets."""
SHARES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties, as shares of the number of images, for features of variance 1."""
ADDED_ROWS = 512
"""Images whose products are added at once: each addition reads and writes all sums."""
FITTED_SHARE = 0.5
"""Of the free memory, what the exact solver may take; beyond that sgd reads from the disk."""
FORWARD_SHARE = 0.3
"""Of the matrix rate that a forward pass reaches, for the estimate of a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargePlan:
    """What a large probe takes, by formula, before anything is read."""

    layer_images: int
    """Training images that choose the layer."""
    choosing_bytes: int
    """8 (L + 1) (D + 1) (D + 1 + C) of sums, and 4 (L + 1) P C D of P ridge fits."""
    fitting_bytes: int
    """Of the solver: exact, 4 N (J D + 1) twice; sgd, next to nothing."""
    disk_bytes: int
    """2 N J D of features in float16, over all splits, of J layers at most."""
    solver: SolverName
    forward_s: float
    """Estimated time of the network, on one process."""

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"layers       the best {FINALISTS} by ridge regression "
            f"on {self.layer_images:,} training images",
            f"memory       {self.choosing_bytes / 1e9:.2f} GB to choose, "
            f"{self.fitting_bytes / 1e9:.2f} GB to fit by {self.solver}, beside the network",
            f"disk         {self.disk_bytes / 1e9:.2f} GB, given back at the end",
            f"time         about {self.forward_s / 60:,.1f} min of the network on one process",
        ]


def plan_large(
    model: Trained,
    data: PackedSet,
    *,
    seen: Seen,
    n_joined: int,
    layer_images: int,
    solver: Solver,
) -> LargePlan:
    """The plan of `probe_large` with the same arguments."""
    config = model.network.config
    width = config.n_embd * N_POOLED[seen["pooling"]]
    n = {split: data.n(split) for split in SPLITS}
    n_classes, n_layers = len(data.classes or ()), config.n_layer + 1
    sums = 8 * n_layers * (width + 1) * (width + 1 + n_classes)
    fits = 4 * n_layers * len(SHARES) * n_classes * width
    exact = 8 * (n["train"] + n["valid"]) * (max(1, n_joined) * width + 1)
    kept = min(n_layers, FINALISTS if n_joined < 2 else n_joined + FINALISTS - 1)
    fits_in = exact < FITTED_SHARE * compute.free_memory_bytes(model.device)
    name: SolverName = solver.name if fits_in or solver.name != "lbfgs" else "sgd"
    chosen = min(layer_images or n["train"], n["train"])
    shape = model.network.shape
    dtype = compute.choose_dtype(seen["precision"], model.device)
    passes = chosen + n["valid"] + sum(n.values())  # the second one stops at the chosen layer
    flops = forward_flops(config, shape) * passes
    return LargePlan(
        layer_images=chosen,
        choosing_bytes=sums + fits,
        fitting_bytes=exact if name == "lbfgs" else 0,
        disk_bytes=2 * sum(n.values()) * kept * width,
        solver=name,
        forward_s=flops / (FORWARD_SHARE * compute.matrix_rate(model.device, dtype)),
    )


def probe_large(
    model: Trained,
    data: PackedSet,
    *,
    seen: Seen,
    raw_pixels: bool = True,
    n_joined: int = 0,
    layer_images: int = LAYER_IMAGES,
    solver: Solver,
    save: bool = True,
    world: World = ALONE,
) -> dict[str, Any]:
    """What `probe_model` gives, for sets of any size.

    Args:
        model: what is probed.
        data: labelled images at the model's size.
        seen: which features.
        raw_pixels: treat the pixels themselves the same, as `raw_pixels`.
        n_joined: adjacent layers to probe side by side, as `joined`; 0: none.
        layer_images: training images, drawn at random, that choose the layer; 0: all.
        solver: of the chosen features; where the exact one would not fit in memory, sgd.
        save: keep the chosen classifier in the model's folder.
        world: processes that share the network's part; only the first one gets figures.

    Raises:
        UserError: labels are missing or too few, or the disk is too small: said before the work.
    """
    checked_labels(data)
    plan = plan_large(
        model, data, seen=seen, n_joined=n_joined, layer_images=layer_images, solver=solver
    )
    world.told(
        lambda: files.check_room(
            files.cache_folder(), plan.disk_bytes, "the features kept of some layers"
        )
    )
    scores = choose_layer(model, data, seen=seen, layer_images=plan.layer_images, world=world)
    best = best_score(scores).layer
    side_by_side = window(best, len(scores), n_joined)
    layers = sorted({*finalists(scores), *side_by_side})
    solver = dataclasses.replace(solver, name=plan.solver)
    with kept_features(model, data, layers, seen=seen, world=world) as splits:
        found, figures = fitted(
            model, data, splits, layers, seen=seen, solver=solver, save=save, world=world
        )
        if found is None:
            return {}
        if n_joined:
            figures["joined"] = probe_joined(splits, side_by_side, layers, best, solver)
    figures["finalists"] = figures["by_layer"]
    figures["by_layer"] = [dataclasses.asdict(score) for score in scores]
    figures["layer_rule"] = (
        f"{solver.name} among layers {', '.join(map(str, layers))}, the best by ridge regression "
        f"on {plan.layer_images} training images"
    )
    if raw_pixels:
        figures["raw_pixels"] = probe_pixels(data, solver=solver)
    return figures


def finalists(scores: Sequence[LayerScore]) -> list[int]:
    """The layers that ridge regression finds best, in increasing order."""
    ranked = sorted(scores, key=lambda score: -score.valid_accuracy)
    return sorted(score.layer for score in ranked[:FINALISTS])


def choose_layer(
    model: Trained,
    data: PackedSet,
    *,
    seen: Seen,
    layer_images: int,
    world: World = ALONE,
) -> list[LayerScore]:
    """How well ridge regression on each layer classifies the validation images.

    Args:
        model: what is probed.
        data: labelled images at its size.
        seen: which features.
        layer_images: training images, drawn at random, to fit on.
        world: processes that share the images; all of them get the scores.
    """
    rows, labels = data.rows("train"), labels_of(data, "train")
    drawn = np.sort(streams.stream(0, "layer-images").permutation(len(rows))[:layer_images])
    present = np.unique(labels)
    codes = np.searchsorted(present, labels[drawn])
    config = model.network.config
    width = config.n_embd * N_POOLED[seen["pooling"]]
    sums = Moments(config.n_layer + 1, width, len(present), model.device)
    _pass(model, data, rows[drawn], "layer, train", seen, world, _Adding(sums, codes, world))
    fits = sums.over(world).ridge()
    judged = _Judging(fits, labels_of(data, "valid"), present, model.device, world)
    _pass(model, data, data.rows("valid"), "layer, valid", seen, world, judged)
    right = world.sum(judged.right).numpy() / data.n("valid")  # (L + 1, P)
    return [
        LayerScore(
            layer=layer,
            strength=1 / SHARES[int(row.argmax())],
            valid_accuracy=float(row.max()),
            valid_loss_nats=math.inf,
        )
        for layer, row in enumerate(right)
    ]


def _pass(
    model: Trained,
    data: PackedSet,
    rows: np.ndarray,
    label: str,
    seen: Seen,
    world: World,
    target: Any,
) -> None:
    """Hand the features of this process's share of some images to `target`."""
    own = world.slots(len(rows))
    if own.start == own.stop:  # more processes than images
        return
    tokens = EncodedImages(data.images_at(rows[own]), model.tokenizer.encode)
    with ticking(label) as ticker:
        stream_features(
            target,
            model.network,
            tokens,
            **seen,
            mask_prob=model.facts.mask_prob,
            progress=Counter(ticker, len(tokens), "images"),
        )


class Moments:
    """Sums over images of every layer, from which ridge regression follows.

    Args:
        n_layers: L + 1.
        width: D.
        n_classes: C.
        device: where the products are taken.
    """

    def __init__(self, n_layers: int, width: int, n_classes: int, device: torch.device) -> None:
        like: Any = {"dtype": torch.float64, "device": compute.for_float64(device)}
        # The last feature of each image is 1.
        self._gram = torch.zeros(n_layers, width + 1, width + 1, **like)
        self._cross = torch.zeros(n_layers, width + 1, n_classes, **like)

    def add(self, features: np.ndarray, codes: np.ndarray) -> None:
        """Add images: (L + 1, n, D) float32 and (n,) int64 classes."""
        device = self._gram.device
        classes = torch.from_numpy(codes).to(device)
        for gram, cross, rows in zip(self._gram, self._cross, features, strict=True):
            x = torch.ones(len(rows), gram.shape[0], dtype=torch.float64, device=device)
            x[:, :-1] = torch.from_numpy(rows)
            gram.addmm_(x.T, x)
            cross.T.index_add_(0, classes, x)

    def over(self, world: World) -> "Moments":
        """The sums over all processes, on each of them."""
        world.sum(self._gram)
        world.sum(self._cross)
        return self

    def ridge(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (L + 1, P, C, D) and biases (L + 1, P, C) float32, one problem a share.

        Targets are 1 for the class of an image and 0 for the others; the penalty is on weights of
        standardised features, the bias goes free.
        """
        found = [_ridge_of(g, c) for g, c in zip(self._gram, self._cross, strict=True)]
        return np.stack([pair[0] for pair in found]), np.stack([pair[1] for pair in found])


def _ridge_of(gram: Tensor, cross: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of one layer: (P, C, D) and (P, C)."""
    n = gram[-1, -1]
    mean, share = gram[-1, :-1] / n, cross[-1] / n  # (D,), (C,)
    square = gram[:-1, :-1] - n * torch.outer(mean, mean)
    variance = square.diagonal().clamp(min=0) / n
    # What varies by rounding only is constant: scaled up, it would be noise.
    varies = variance > 1e-10 * (variance + mean.square())
    scale = torch.where(varies, variance, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(square * scale * scale[:, None])
    turned = vectors.T @ (scale[:, None] * (cross[:-1] - n * torch.outer(mean, share)))  # (D, C)
    weights = torch.stack(
        [
            ((vectors * (values.clamp(min=0) + alpha * n).reciprocal()) @ turned).T * scale
            for alpha in SHARES
        ]
    )  # (P, C, D)
    biases = share - weights @ mean
    return weights.float().cpu().numpy(), biases.float().cpu().numpy()


class _Adding:
    """A target of features that adds them up.

    Args:
        sums: what they are added to.
        codes: (N,) int64 classes of the images of all processes.
        world: the processes.
    """

    def __init__(self, sums: Moments, codes: np.ndarray, world: World) -> None:
        self._sums, self._codes = sums, codes[world.slots(len(codes))]
        self._held: list[np.ndarray] = []
        self._added = 0

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        self._held.append(values)
        end = place[1].stop
        if end - self._added < ADDED_ROWS and end < len(self._codes):
            return
        self._sums.add(np.concatenate(self._held, axis=1), self._codes[self._added : end])
        self._added, self._held = end, []


class _Judging:
    """A target of features that counts what each fit gets right."""

    def __init__(
        self,
        fits: tuple[np.ndarray, np.ndarray],
        labels: np.ndarray,
        present: np.ndarray,
        device: torch.device,
        world: World,
    ) -> None:
        n_layers, n_shares = fits[1].shape[:2]
        self._weights, self._biases = (torch.from_numpy(part).to(device) for part in fits)
        self._labels, self._present = labels[world.slots(len(labels))], present
        self.right = torch.zeros(n_layers, n_shares, dtype=torch.float64)

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        truth = self._labels[place[1]]
        rows = torch.from_numpy(values).to(self._weights.device)  # (L + 1, n, D)
        for layer, (x, w, b) in enumerate(zip(rows, self._weights, self._biases, strict=True)):
            codes = (torch.einsum("nd,pcd->pnc", x, w) + b[:, None]).argmax(dim=2)
            answers = self._present[codes.cpu().numpy()]
            self.right[layer] += torch.from_numpy((answers == truth).sum(axis=1))


@contextlib.contextmanager
def kept_features(
    model: Trained,
    data: PackedSet,
    layers: list[int],
    *,
    seen: Seen,
    world: World = ALONE,
) -> Iterator[list[Labelled]]:
    """The three splits with features of some layers, in float16 on the disk for the block's time.

    On every process but the first they are not there.
    """
    place = files.cache_folder() / "features"
    if not world.is_first:
        for split in SPLITS:
            _fill(None, model, data, split, layers, seen=seen, world=world)
        yield []
        return
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="large-", dir=place) as folder:
        splits = []
        for split in SPLITS:
            width = model.network.config.n_embd * N_POOLED[seen["pooling"]]
            shape = (len(layers), data.n(split), width)
            path = Path(folder) / f"{split}.npy"
            held = np.lib.format.open_memmap(path, "w+", np.float16, shape)
            _fill(held, model, data, split, layers, seen=seen, world=world)
            splits.append(Labelled(held, labels_of(data, split)))
        yield splits


def _fill(
    held: Any,
    model: Trained,
    data: PackedSet,
    split: Split,
    layers: list[int],
    *,
    seen: Seen,
    world: World,
) -> None:
    """Have all processes compute the features of a split into the first one's array."""
    tokens = EncodedImages(data.images(split), model.tokenizer.encode)
    with ticking(f"features, {split}") as ticker:
        stream_features(
            held,
            model.network,
            tokens,
            layers=layers,
            **seen,
            mask_prob=model.facts.mask_prob,
            progress=Counter(ticker, len(tokens), "images"),
            world=world,
        )
