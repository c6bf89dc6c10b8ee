"""`igpt probe`."""

import dataclasses
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.arguments import Data, Model
from igpt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from igpt.evaluate.probe import Labelled, ProbeResult
    from igpt.images.packed import PackedSet
    from igpt.images.splits import Split
    from igpt.pixelmodel import PixelModel


def probe(
    model: Model,
    data: Data,
    *,
    raw_residual: bool = False,
    raw_pixels: bool = True,
    joined: int = 0,
    json: bool = False,
) -> None:
    """Linear probe of every layer (paper §2.4): layer and strength chosen on validation, then test.

    The fitted probe is saved with the model, and `igpt classify` uses it.

    Args:
        model: a run, a model folder or a shipped name.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        raw_residual: pool the residual stream itself in place of the paper's normalised features.
        raw_pixels: treat the pixels themselves the same, for comparison.
        joined: also probe so many adjacent layers around the best, side by side (the paper's 5).
        json: print the result as one JSON document.
    """
    from igpt import compute
    from igpt.cli.opening import open_for, record_place
    from igpt.evaluate.record import write_record
    from igpt.pixelmodel import load

    compute.set_threads()
    loaded = load(model)
    packed = open_for(loaded, data)
    result = probe_model(
        loaded, packed, normalised=not raw_residual, raw_pixels=raw_pixels, n_joined=joined
    )
    if place := record_place(Path(model)):
        digest = loaded.digest()
        write_record(place, "probe", result, model=digest, data=packed.source, split="test")
    if json:
        about = {"model": model, "data": packed.source, "split": "test"}
        print(json_format.dumps({**about, **result}))
    else:
        _print_result(result)


def _print_result(result: dict[str, Any]) -> None:
    print("layer  strength  validation accuracy")
    for score in result["by_layer"]:
        mark = "  <- chosen" if score["layer"] == result["layer"] else ""
        print(
            f"{score['layer']:>5}  {score['strength']:>8g}  {score['valid_accuracy']:>8.2%}{mark}"
        )
    spread = f"± {result['test_accuracy_se']:.2%}"
    print(f"test accuracy of layer {result['layer']}: {result['test_accuracy']:.2%} {spread}")
    if pixels := result.get("raw_pixels"):
        print(f"raw pixels, same protocol: {pixels['test_accuracy']:.2%}")
    if side_by_side := result.get("joined"):
        print(f"layers {side_by_side['layers']} joined: {side_by_side['test_accuracy']:.2%}")
    if vote := result.get("vote"):
        print(f"modal answer of {vote['n_masks']} masks: {vote['test_accuracy']:.2%}")


def probe_model(
    model: "PixelModel",
    data: "PackedSet",
    *,
    normalised: bool = True,
    raw_pixels: bool = True,
    n_joined: int = 0,
) -> dict[str, Any]:
    """Probe all layers, save the chosen classifier in the model's folder, return the figures.

    A BERT model is also judged by the modal answer of several masks (paper §4.6).

    Raises:
        UserError: the images have no labels, or too few of them.
    """
    from igpt.evaluate.probe import SavedProbe, probe_layers
    from igpt.progress import ticking

    labels_of(data, "train")
    assert data.classes is not None
    train, valid, test = (
        labelled_features(model, data, name, normalised=normalised) for name in SPLITS
    )
    layers = range(model.network.config.n_layer + 1)
    with ticking("probe") as ticker:
        tick = _Counter(ticker, len(layers))
        result, weights, biases = probe_layers(
            train,
            valid,
            test,
            layers=layers,
            device=model.device,
            progress=tick,
        )
    if model.folder is not None and model.folder.is_dir():
        SavedProbe(
            weights=weights,
            biases=biases,
            layer=result.layer,
            normalised=normalised,
            strength=result.strength,
            labels=result.labels,
            classes=tuple(data.classes[label] for label in result.labels),
            model_digest=model.digest(),
            protocol=PROTOCOL.format(source=data.source),
        ).save(model.folder)
    figures: dict[str, Any] = dataclasses.asdict(result)
    if raw_pixels:
        figures["raw_pixels"] = probe_pixels(data)
    if n_joined:
        figures["joined"] = _probe_joined((train, valid, test), result.layer, n_joined)
    if model.network.objective == "bert":
        figures["vote"] = _voted(model, data, result, weights, biases, normalised)
    return figures


def _probe_joined(splits: "tuple[Labelled, ...]", around: int, n_joined: int) -> dict[str, Any]:
    """The same protocol on adjacent layers side by side (paper §4.4)."""
    from igpt.evaluate.probe import Labelled, join_layers, probe_layers

    pairs = [join_layers(split.features, around, n_joined=n_joined) for split in splits]
    train, valid, test = (
        Labelled(features[None], split.labels)
        for (features, _), split in zip(pairs, splits, strict=True)
    )
    result, _, _ = probe_layers(train, valid, test, layers=[around])
    return {"layers": list(pairs[0][1]), **dataclasses.asdict(result)}


def _voted(
    model: "PixelModel",
    data: "PackedSet",
    result: "ProbeResult",
    weights: "np.ndarray",
    biases: "np.ndarray",
    normalised: bool,
) -> dict[str, Any]:
    """Test accuracy of the modal answer over `N_MASKS` masks; the probe saw the first one's."""
    import numpy as np

    from igpt.evaluate.features import EncodedImages, extract_features
    from igpt.evaluate.vote import voted_accuracy

    tokens = EncodedImages(data.images("test"), model.tokenizer.encode)
    features = [
        extract_features(
            model.network,
            tokens,
            layers=[result.layer],
            normalised=normalised,
            mask_prob=model.facts.mask_prob,
            mask_seed=seed,
        )[0]
        for seed in range(N_MASKS)
    ]
    accuracy = voted_accuracy(
        np.stack(features),
        labels_of(data, "test"),
        weights=weights,
        biases=biases,
        present=np.array(result.labels),
        seed=0,
    )
    return {"n_masks": N_MASKS, "test_accuracy": accuracy}


SPLITS: "tuple[Split, ...]" = ("train", "valid", "test")
N_MASKS = 5
PROTOCOL = (
    "Logistic regression on {source}; layer and strength chosen on validation, "
    "refitted on train and validation, test looked at once."
)


def probe_pixels(data: "PackedSet") -> dict[str, Any]:
    """The same protocol on the pixels themselves."""
    from igpt.evaluate.probe import Labelled, pixel_features, probe_layers

    train, valid, test = (
        Labelled(pixel_features(data.images(name)[:])[None], labels_of(data, name))
        for name in SPLITS
    )
    result, _, _ = probe_layers(train, valid, test, layers=[0])
    return dataclasses.asdict(result)


class _Counter:
    """Turns `n more are done` into a ticker's `k of N`."""

    def __init__(self, ticker: Any, total: int, unit: str = "") -> None:
        self._ticker, self._total, self._unit, self._done = ticker, total, unit, 0

    def __call__(self, n: int) -> None:
        self._done += n
        self._ticker.update(self._done, self._total, self._unit)


def labelled_features(
    model: "PixelModel", data: "PackedSet", split: "Split", *, normalised: bool = True
) -> "Labelled":
    """Features of all layers of a split, with its labels; kept in the cache folder.

    Raises:
        UserError: the images have no labels.
    """
    from igpt.evaluate.features import EncodedImages, extract_features
    from igpt.evaluate.probe import Labelled
    from igpt.progress import ticking

    images = data.images(split)
    with ticking(f"features, {split}") as ticker:
        features = extract_features(
            model.network,
            EncodedImages(images, model.tokenizer.encode),
            normalised=normalised,
            mask_prob=model.facts.mask_prob,
            progress=_Counter(ticker, len(images), "images"),
        )
    return Labelled(features, labels_of(data, split))


def labels_of(data: "PackedSet", split: "Split") -> "np.ndarray":
    """The labels of a split: (n,) int64.

    Raises:
        UserError: it has none.
    """
    labels = data.labels(split)
    if labels is None:
        raise UserError(f"{data.source} has no labels: give one folder a class, or a labelled set")
    return labels
