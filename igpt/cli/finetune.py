"""`igpt finetune`."""

import dataclasses
import json as json_format
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from igpt.cli.arguments import Data, Model
from igpt.cli.outputs import empty_folder
from igpt.config import FinetuneConfig
from igpt.errors import UserError

if TYPE_CHECKING:
    from igpt.evaluate.classifier import Classifier
    from igpt.evaluate.finetune import FinetuneResult
    from igpt.images.packed.read import PackedSet
    from igpt.pixelmodel import PixelModel

BERT_MASKS = 5


def finetune(
    model: Model,
    data: Data,
    *,
    finetune: Annotated[FinetuneConfig, arg(name="finetune")] = FinetuneConfig(),  # noqa: B008
    rates: tuple[float, ...] = (),
    scratch: bool = False,
    image_size: int | None = None,
    seeds: int = 1,
    max_images: int | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Train all weights to classify (paper §2.3); step and rate chosen on validation, then test.

    Args:
        model: a run, a model folder or a shipped name.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        finetune: how it is trained.
        rates: learning rates to try in turn until validation accuracy falls; none: finetune.lr.
        scratch: start from fresh weights: the supervised baseline with the same budget.
        image_size: train at this size; position embeddings are interpolated. None: the model's.
        seeds: fine-tune so many times, with finetune.seed and those after it; test accuracy is
            then the mean, with its standard deviation. The first seed searches the rate.
        max_images: look at so many images of each split at most, drawn at random; none: all.
        out: folder, new or empty, to save the fine-tuned model to (the first seed's), for `igpt
            classify` and `igpt convert --to transformers-classifier`; none: it is not kept.
        json: print the result as one JSON document.
    """
    from igpt import compute
    from igpt.cli.opening import open_for, recorded
    from igpt.pixelmodel import load

    compute.set_threads()
    folder = None if out is None else empty_folder(out)
    loaded = load(model)
    packed = open_for(loaded, data, image_size=image_size, max_images=max_images)
    result = finetune_model(
        loaded,
        packed,
        config=finetune,
        rates=rates,
        scratch=scratch,
        n_seeds=seeds,
        out=folder,
    )
    name = _name(result, loaded.image_size)
    document = recorded(
        model, loaded, name, result, data=packed, seed=finetune.seed, precision=finetune.precision
    )
    if json:
        print(json_format.dumps(document))
        return
    print(f"best at step {result['step']}, rate {result['lr']:g}: ", end="")
    print(f"validation accuracy {result['valid_accuracy']:.2%}")
    print(
        f"test accuracy: {result['test_accuracy']:.2%} ± {result['test_accuracy_se']:.2%}", end=""
    )
    print(f" on {result['n_test']:,} images")
    if seeds > 1:
        each = ", ".join(f"{accuracy:.2%}" for accuracy in result["test_accuracies"])
        print(f"  over {seeds} seeds: {each}; standard deviation {result['test_accuracy_sd']:.2%}")


def _name(result: dict[str, Any], model_size: int) -> str:
    """`finetune`, with what sets it apart, so that the variants stand side by side in a run."""
    parts = ["finetune"]
    if not result["joint"]:
        parts.append("clf")
    if result["scratch"]:
        parts.append("scratch")
    if result["layer"] is not None:
        parts.append(f"layer{result['layer']}")
    if result["image_size"] != model_size:
        parts.append(f"{result['image_size']}px")
    return "-".join(parts)


def finetune_model(
    model: "PixelModel",
    data: "PackedSet",
    *,
    config: FinetuneConfig,
    rates: tuple[float, ...] = (),
    scratch: bool = False,
    n_seeds: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Fine-tune copies of the model: the first one's `FinetuneResult`, and the spread over all.

    The first one is saved to `out`, if that is given.

    Raises:
        UserError: the images have no labels, or are of one class; said before training starts.
    """
    from igpt.probe.probing import checked_labels
    from igpt.progress import Counter, ticking

    if n_seeds < 1:
        raise UserError(f"--seeds is {n_seeds}: it must be at least 1")
    checked_labels(data)
    results: list[FinetuneResult] = []
    runs = max(1, len(rates)) + n_seeds - 1
    with ticking("fine-tuning") as ticker:
        advance = Counter(ticker, config.total_steps * runs, "steps")
        for number in range(n_seeds):
            seeded = dataclasses.replace(config, seed=config.seed + number)
            if results:
                seeded = dataclasses.replace(seeded, lr=results[0].lr)
            tried = () if results else rates
            tuned, result = _finetune_once(model, data, seeded, tried, scratch, advance)
            if out is not None and not results:
                _tuned_model(model, data, tuned, scratch=scratch).save(out)
            results.append(result)
    accuracies = [result.test_accuracy for result in results]
    return {
        "joint": config.joint,
        "layer": config.layer,
        "scratch": scratch,
        "image_size": data.image_size,
        "objective": model.network.objective,
        **dataclasses.asdict(results[0]),
        "test_accuracy": statistics.mean(accuracies),
        "test_accuracies": accuracies,
        "test_accuracy_sd": statistics.stdev(accuracies) if n_seeds > 1 else None,
    }


def _finetune_once(
    model: "PixelModel",
    data: "PackedSet",
    config: FinetuneConfig,
    rates: tuple[float, ...],
    scratch: bool,
    advance: "Callable[[int], None]",
) -> "tuple[Classifier, FinetuneResult]":
    from igpt.evaluate.classifier import from_scratch, resampled
    from igpt.evaluate.finetune import finetune_and_test
    from igpt.images.splits import SPLITS
    from igpt.probe.probing import labels_of
    from igpt.probe.protocol import LabelledImages

    train, valid, test = (
        LabelledImages(data.images(name), labels_of(data, name)) for name in SPLITS
    )
    assert data.classes is not None
    network = model.network
    if data.image_size != model.image_size:
        network = resampled(network, image_size=model.image_size, new_image_size=data.image_size)
    if scratch:
        network = from_scratch(network, seed=config.seed)
    return finetune_and_test(
        network,
        train,
        valid,
        test,
        encode=model.tokenizer.encode,
        n_classes=len(data.classes),
        mask_prob=model.facts.mask_prob,
        config=config,
        rates=rates,
        n_masks=BERT_MASKS,
        progress=advance,
    )


def _tuned_model(
    model: "PixelModel", data: "PackedSet", tuned: "Classifier", *, scratch: bool
) -> "PixelModel":
    """The fine-tuned weights with their class head, as a model of its own."""
    from igpt.pixelmodel import PixelModel

    assert data.classes is not None
    trained = {} if scratch else model.facts.trained
    facts = dataclasses.replace(
        model.facts, image_size=data.image_size, trained={**trained, "finetuned": data.source}
    )
    found = PixelModel(tuned.network, model.tokenizer, facts)
    weights = tuned.head.weight.detach().cpu().numpy()
    protocol = f"all weights fine-tuned on {data.source} (paper §2.3)"
    found.take_class_head(weights, data.classes, layer=tuned.layer, protocol=protocol)
    return found
