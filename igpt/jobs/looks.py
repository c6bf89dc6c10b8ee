"""What looks at a run while it trains: grids that it draws, and a probe of its features.

Both see only the weights and named random streams, so a run learns the same with and without them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from igpt import compute
from igpt.config import RunConfig
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.images.splits import Split
from igpt.pixelmodel import PixelModel
from igpt.probing.features import EncodedImages, extract_features
from igpt.probing.protocol import Labelled, check_labels
from igpt.probing.solve import Solver, SolverName, fit, labels_of
from igpt.report.grids import N_COMPLETED, grids
from igpt.tokens.tokenizer import Tokenizer
from igpt.train.trainer import Look, Trainer, whole_network
from igpt.trained import ModelFacts

N_FITTED = 2_000
"""Labelled training images that a probe while training is fitted on, always the same ones."""
N_JUDGED = 1_000
"""Labelled validation images that it is judged on."""
PROBES: dict[str, SolverName] = {"probe_accuracy": "lbfgs", "knn_accuracy": "knn"}
"""The figures, and what fits: a linear classifier, and a vote of the nearest training images."""


def check_looks(config: RunConfig, data: PackedSet) -> None:
    """Refuse a look that the data does not allow.

    Raises:
        UserError: `train.probe_every` without enough labels.
    """
    if not config.train.probe_every:
        return
    if data.classes is None:
        raise UserError(
            f"train.probe_every fits a probe on labels, and {data.source} has none: drop it, or "
            "give one folder a class"
        )
    for split in ("train", "valid"):
        probed = _probed(data, split)
        check_labels(labels_of(probed, split), probed.n(split), split)


def looks_of(trainer: Trainer, data: PackedSet, tokenizer: Tokenizer) -> list[Look]:
    """What the settings of a run ask for; all ranks must call each."""
    train = trainer.config.train
    looks = []
    if train.draw_every:
        looks.append(Look(train.draw_every, _drawer(trainer, data, tokenizer)))
    if train.probe_every:
        looks.append(Look(train.probe_every, _prober(trainer, data, tokenizer)))
    return looks


def _drawer(
    trainer: Trainer, data: PackedSet, tokenizer: Tokenizer
) -> Callable[[], dict[str, np.ndarray]]:
    """What draws grids with the network as it is when called."""
    config = trainer.config
    facts = ModelFacts(
        objective=config.train.objective,
        image_size=config.data.image_size,
        tokens=config.data.tokens,
        trained={},
        mask_prob=config.train.mask_prob,
    )
    shown = data.images("valid" if data.n("valid") else "train")[:N_COMPLETED]

    def draw() -> dict[str, np.ndarray]:
        network = whole_network(trainer)
        if network is None:
            return {}
        found: dict[str, np.ndarray] = grids(
            PixelModel(network, tokenizer, facts), shown, seed=config.seed
        )
        trainer.network.train()  # which the model's making ends
        return found

    return draw


def _prober(
    trainer: Trainer, data: PackedSet, tokenizer: Tokenizer
) -> Callable[[], dict[str, Any]]:
    """What probes every layer of the network as it is when called: accuracies on validation."""
    mask_prob = trainer.config.train.mask_prob

    def features_of(network: Any, split: Split) -> Labelled:
        probed = _probed(data, split)
        tokens = EncodedImages(probed.images(split), tokenizer.encode)
        features = extract_features(network, tokens, mask_prob=mask_prob, keep=False)
        return Labelled(features, labels_of(probed, split))

    # Blocks compiled for training would be compiled again for the shapes met here.
    @compute.eager()
    def probe() -> dict[str, Any]:
        network = whole_network(trainer)
        if network is None:
            return {}
        train, valid = features_of(network, "train"), features_of(network, "valid")
        trainer.network.train()
        layers, found = range(len(train.features)), {}
        for name, solver in PROBES.items():
            # What stands for test here is validation again: test is not looked at.
            solving = Solver(name=solver, device=trainer.device)
            result = fit(train, valid, valid, layers=layers, solver=solving).result
            found[name] = [score.valid_accuracy for score in result.by_layer]
        return found

    return probe


def _probed(data: PackedSet, split: Split) -> PackedSet:
    return data.labelled().at_most(N_FITTED if split == "train" else N_JUDGED)
