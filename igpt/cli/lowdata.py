"""`igpt lowdata`."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from igpt.cli.outputs import Data, Model, print_json
from igpt.config import FinetuneConfig, Pooling
from igpt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from igpt.images.packed.read import PackedSet
    from igpt.images.splits import Split
    from igpt.pixelmodel import PixelModel
    from igpt.probing.fewlabel import FewLabelResult
    from igpt.probing.protocol import Labelled, LabelledImages
    from igpt.tokens.tokenizer import ImageArray


TRAIN_TEST: "tuple[Split, ...]" = ("train", "test")


def lowdata(
    model: Model,
    data: Data,
    *,
    labels: tuple[int, ...] = (4, 25, 400),
    subsets: int = 5,
    seed: int = 0,
    pooling: Literal["mean", "bands"] = "mean",
    scratch_steps: int = 0,
    wide_resnet_steps: int = 0,
    max_images: int | None = None,
    json: bool = False,
) -> None:
    """What a few labels a class can do (paper §4.7): mean and spread over random subsets.

    Layer and strength are chosen by cross-validation inside each subset; no other label is used.

    Args:
        model: a run, a model folder or a shipped name.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        labels: labels a class, one evaluation each.
        subsets: random subsets for each.
        seed: of the subsets.
        pooling: of the features, as for igpt probe.
        scratch_steps: updates of the same Transformer from scratch on each subset; 0: leave it out.
        wide_resnet_steps: updates of a Wide ResNet 28-2 on each subset; 0: leave it out.
        max_images: look at so many images of each split at most, drawn at random; none: all.
        json: print the result as one JSON document.
    """
    from igpt import compute
    from igpt.jobs.opening import open_labelled, recorded
    from igpt.loading import load

    if subsets < 1 or min(scratch_steps, wide_resnet_steps) < 0:
        raise UserError("--subsets must be at least 1, and no number of steps may be negative")
    if not labels:
        raise UserError("--labels names no number: give one or several, such as --labels 4 25")
    compute.set_threads()
    loaded = load(model)
    packed = open_labelled(loaded, data, max_images=max_images)
    steps = {"scratch": scratch_steps, "wide_resnet": wide_resnet_steps}
    rows = evaluate_lowdata(
        loaded,
        packed,
        labels=labels,
        n_subsets=subsets,
        seed=seed,
        baseline_steps=steps,
        pooling=pooling,
    )
    document = recorded(model, loaded, "lowdata", {"rows": rows}, data=packed, seed=seed)
    if json:
        print_json(document)
        return
    print(f"{'labels a class':>14}  {'method':<22}  test accuracy over {subsets} subsets")
    for row in rows:
        spread = f"{row['mean']:.2%} ± {row['sd']:.2%}"
        print(f"{row['labels_per_class']:>14}  {row['method']:<22}  {spread}")


def evaluate_lowdata(
    model: "PixelModel",
    data: "PackedSet",
    *,
    labels: tuple[int, ...],
    n_subsets: int,
    seed: int,
    baseline_steps: dict[str, int],
    pooling: Pooling,
) -> list[dict[str, Any]]:
    """One row for each number of labels and each method: a `FewLabelResult` with its `method`.

    Raises:
        UserError: labels are missing, or fewer than asked for.
    """
    from igpt.probing.exact import checked_labels, labelled_features
    from igpt.probing.fewlabel import evaluate_few_labels, evaluate_supervised, subset_rows
    from igpt.probing.protocol import LabelledImages
    from igpt.progress import say

    checked = checked_labels(data)
    images = {split: LabelledImages(data.images(split), checked[split]) for split in TRAIN_TEST}
    for count in labels:  # before the long work starts
        subset_rows(images["train"].labels, count, seed=seed, subset=0, classes=data.classes)
    linear = {
        "features": [
            labelled_features(model, data, split, pooling=pooling) for split in TRAIN_TEST
        ],
        "raw pixels": [_pixels(images[split]) for split in TRAIN_TEST],
    }
    rows: list[dict[str, Any]] = []

    def add(method: str, result: "FewLabelResult") -> None:
        say(f"{result.labels_per_class} labels a class, {method}: {result.mean:.2%}")
        rows.append({"method": method, **dataclasses.asdict(result)})

    for count in labels:
        for method, (train, test) in linear.items():
            result = evaluate_few_labels(
                train,
                test,
                layers=range(len(train.features)),
                labels_per_class=count,
                n_subsets=n_subsets,
                seed=seed,
                device=model.device,
            )
            add(method, result)
        for method, fit in _baselines(model, data, seed, baseline_steps).items():
            result = evaluate_supervised(
                images["train"],
                images["test"],
                fit=fit,
                labels_per_class=count,
                n_subsets=n_subsets,
                seed=seed,
            )
            add(method, result)
    return rows


def _pixels(part: "LabelledImages") -> "Labelled":
    from igpt.probing.protocol import Labelled, pixel_features

    return Labelled(pixel_features(part.images[:])[None], part.labels)


def _baselines(
    model: "PixelModel", data: "PackedSet", seed: int, steps: dict[str, int]
) -> "dict[str, Any]":
    """The supervised methods asked for, by name: each fits a subset and classifies images."""
    from igpt.evaluation.classifier import from_scratch, predict
    from igpt.evaluation.finetune import Task, tune_in_memory
    from igpt.evaluation.wideresnet import WideResNetConfig, train_wide_resnet

    assert data.classes is not None
    n_classes = len(data.classes)
    encode, mask_prob = model.tokenizer.encode, model.facts.mask_prob

    def scratch(few: "LabelledImages", subset: int) -> "Callable[[ImageArray], np.ndarray]":
        task = Task(
            network=from_scratch(model.network, seed=seed + subset),
            tokenizer=model.tokenizer,
            train=few,
            n_classes=n_classes,
            mask_prob=mask_prob,
        )
        config = FinetuneConfig(joint=False, total_steps=steps["scratch"], seed=seed + subset)
        classifier = tune_in_memory(task, config)
        return lambda images: predict(classifier, images, encode=encode, mask_prob=mask_prob)

    def wide_resnet(few: "LabelledImages", subset: int) -> "Callable[[ImageArray], np.ndarray]":
        config = WideResNetConfig(total_steps=steps["wide_resnet"], seed=seed + subset)
        return train_wide_resnet(few, n_classes=n_classes, config=config, device=model.device)

    named = {"scratch": ("Transformer from scratch", scratch)}
    named["wide_resnet"] = ("Wide ResNet 28-2", wide_resnet)
    return {name: fit for key, (name, fit) in named.items() if steps[key] > 0}
