"""`igpt probe`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes

from igpt.cli.outputs import Data, Model, print_json, show
from igpt.config import ProbeConfig
from igpt.errors import UserError


def probe(
    model: Model,
    data: Data,
    *,
    asked: Annotated[ProbeConfig, OmitArgPrefixes] = ProbeConfig(),  # noqa: B008
    plan: bool = False,
    checkpoints: bool = False,
    max_images: int | None = None,
    json: bool = False,
) -> None:
    """Linear probe of every layer (paper §2.4): layer and strength chosen on validation, then test.

    The fitted probe is saved with the model, and `igpt classify` uses it; one that ships keeps its
    own (`igpt convert` makes a copy that can be changed).

    Args:
        model: a run, a model folder or a shipped name.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        asked: what is fitted, and how.
        plan: only say what --large would take: memory, disk and time.
        checkpoints: probe every checkpoint that the run keeps, for Figure 3 of igpt report.
        max_images: look at so many images of each split at most, drawn at random; none: all.
        json: print the result as one JSON document.
    """
    from igpt import compute
    from igpt.jobs.probe import plan_probe, probe, probe_checkpoints
    from igpt.train.distributed import joined

    if checkpoints and asked.large:
        raise UserError("--large does not take --checkpoints: probe those apart")
    compute.set_threads()
    with joined() as world:
        if checkpoints and world.size > 1:
            raise UserError("--checkpoints is done by one process: call it without torchrun")
        if plan:
            if world.is_first:
                planned = plan_probe(model, data, asked, max_images=max_images)
                document = {**dataclasses.asdict(planned), "lines": planned.lines()}
                show(document, planned.lines(), json=json)
            return
        if checkpoints:
            packed, by_step = probe_checkpoints(Path(model), data, max_images=max_images)
            _print_checkpoints(by_step, model, packed.source, json=json)
            return
        result = probe(model, data, config=asked, max_images=max_images, verbose=True)
    if not result:
        return
    if json:
        print_json(result)
    else:
        _print_result(result)


def _print_checkpoints(
    results: dict[int, dict[str, Any]], model: str, data: str, *, json: bool
) -> None:
    if json:
        about = {"model": model, "data": data, "split": "test"}
        print_json({**about, "checkpoints": results})
        return
    print("    step  layer  validation accuracy  test accuracy")
    for step, result in results.items():
        accuracies = f"{result['valid_accuracy']:>19.2%}  {result['test_accuracy']:>13.2%}"
        print(f"{step:>8}  {result['layer']:>5}  {accuracies}")


def _print_result(result: dict[str, Any]) -> None:
    chosen = {"lbfgs": "strength", "sgd": "rate", "knn": "k"}[result["solver"]]
    print(f"layer  {chosen:>8}  validation accuracy")
    for score in result["by_layer"]:
        mark = "  <- chosen" if score["layer"] == result["layer"] else ""
        print(
            f"{score['layer']:>5}  {score['strength']:>8g}  {score['valid_accuracy']:>8.2%}{mark}"
        )
    spread = f"± {result['test_accuracy_se']:.2%} on {result['n_test']:,} images"
    if rule := result.get("layer_rule"):
        print(f"layer chosen by {rule}")
    print(f"test accuracy of layer {result['layer']}: {result['test_accuracy']:.2%} {spread}")
    if pixels := result.get("raw_pixels"):
        print(f"raw pixels, same protocol: {pixels['test_accuracy']:.2%}")
    if rival := result.get("kmeans"):
        print(f"{rival['n_centers']} k-means centres: {rival['test_accuracy']:.2%}")
    if side_by_side := result.get("joined"):
        print(f"layers {side_by_side['layers']} joined: {side_by_side['test_accuracy']:.2%}")
    if head := result.get("attentive"):
        print(f"attentive head on layer {head['layer']}: {head['test_accuracy']:.2%}")
    if vote := result.get("vote"):
        print(f"modal answer of {vote['n_masks']} masks: {vote['test_accuracy']:.2%}")
