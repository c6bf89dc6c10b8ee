"""`igpt probe`."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from igpt.cli.arguments import Data, Model
from igpt.errors import UserError

if TYPE_CHECKING:
    from igpt.compute import Precision
    from igpt.images.packed.read import PackedSet
    from igpt.pixelmodel import PixelModel
    from igpt.probing.exact import Seen
    from igpt.probing.solve import Solver


def probe(
    model: Model,
    data: Data,
    *,
    raw_residual: bool = False,
    pooling: Literal["mean", "bands"] = "mean",
    raw_pixels: bool = True,
    joined: int = 0,
    kmeans: int = 0,
    solver: Literal["lbfgs", "sgd", "knn"] = "lbfgs",
    sgd_steps: int = 10_000,
    large: bool = False,
    layer_images: int = 20_000,
    plan: bool = False,
    checkpoints: bool = False,
    max_images: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    json: bool = False,
) -> None:
    """Linear probe of every layer (paper §2.4): layer and strength chosen on validation, then test.

    The fitted probe is saved with the model, and `igpt classify` uses it; one that ships keeps its
    own (`igpt convert` makes a copy that can be changed).

    Args:
        model: a run, a model folder or a shipped name.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        raw_residual: pool the residual stream itself in place of the paper's normalised features.
        pooling: over positions: mean, the paper's; bands: means of four bands of rows, and spread.
        raw_pixels: treat the pixels themselves the same, for comparison.
        joined: also probe so many adjacent layers around the best, side by side (the paper's 5).
        kmeans: also probe the features of so many k-means clusters (Coates et al. 2011).
        solver: of every kind of features: lbfgs finds the optimum; sgd reads a batch at a time, as
            the paper does (§3.4); knn lets the nearest training images vote.
        sgd_steps: updates of sgd, the same for each of its rates.
        large: for sets of any size: ridge regression ranks the layers while images pass, then the
            features of the best three are kept, in float16, for the solver to choose between; sgd
            where the optimum would not fit in memory.
        layer_images: training images, drawn at random, that rank the layers of --large; 0: all.
        plan: only say what --large would take: memory, disk and time.
        checkpoints: probe every checkpoint that the run keeps, for Figure 3 of igpt report.
        max_images: look at so many images of each split at most, drawn at random; none: all.
        precision: of the network's matrix products; auto: bf16 where the processor has it.
        json: print the result as one JSON document.
    """
    from igpt import compute
    from igpt.cli.opening import open_labelled
    from igpt.loading import load
    from igpt.probing.solve import Solver
    from igpt.train.distributed import joined as joined_ranks

    if large and (kmeans or checkpoints):
        raise UserError("--large takes neither --kmeans nor --checkpoints: probe those apart")
    if layer_images < 0:
        raise UserError(f"--layer-images is {layer_images}: choose 0 for all, or a number")
    if min(joined, kmeans) < 0 or sgd_steps < 1:
        raise UserError(
            "--joined and --kmeans must not be negative and --sgd-steps must be at least 1"
        )
    compute.set_threads()
    seen: Seen = {"normalised": not raw_residual, "pooling": pooling, "precision": precision}
    with joined_ranks() as world:
        if checkpoints and world.size > 1:
            raise UserError("--checkpoints is done by one process: call it without torchrun")
        loaded = load(model)
        with world.first_alone():
            packed = open_labelled(loaded, data, max_images=max_images)
        if checkpoints:
            _print_checkpoints(_probe_checkpoints(Path(model), packed), model, packed, json=json)
            return
        solving = Solver(name=solver, sgd_steps=sgd_steps, device=loaded.device)
        sized: Any = {"seen": seen, "n_joined": joined, "solver": solving}
        if plan:
            if world.is_first:
                _print_plan(loaded, packed, json=json, layer_images=layer_images, **sized)
            return
        if large:
            sized["layer_images"] = layer_images
        result = _probed(
            loaded, packed, large=large, kmeans=kmeans, raw_pixels=raw_pixels, world=world, **sized
        )
    if result:
        _tell(model, loaded, packed, result, precision=precision, json=json)


def _probed(
    model: "PixelModel",
    data: "PackedSet",
    *,
    large: bool,
    kmeans: int,
    seen: "Seen",
    solver: "Solver",
    **options: Any,
) -> dict[str, Any]:
    """The figures by one of the two paths; on every process but the first nothing."""
    from igpt.probing.exact import probe_model
    from igpt.probing.large import probe_large

    if large:
        return probe_large(model, data, seen=seen, solver=solver, **options)
    own: Any = {"solver": solver.name, "sgd_steps": solver.sgd_steps, "n_centers": kmeans}
    return probe_model(model, data, **seen, **own, **options)


def _print_plan(model: "PixelModel", data: "PackedSet", *, json: bool, **options: Any) -> None:
    import dataclasses

    from igpt.probing.large import plan_large

    planned = plan_large(model, data, **options)
    document = {**dataclasses.asdict(planned), "lines": planned.lines()}
    print(json_format.dumps(document) if json else "\n".join(planned.lines()))


def _tell(
    name: str,
    model: "PixelModel",
    data: "PackedSet",
    result: dict[str, Any],
    *,
    precision: "Precision",
    json: bool,
) -> None:
    """Record the figures and print them."""
    from igpt.cli.opening import recorded
    from igpt.progress import say
    from igpt.shipped import is_shipped

    document = recorded(name, model, "probe", result, data=data, precision=precision)
    if json:
        print(json_format.dumps(document))
    else:
        _print_result(result)
    if is_shipped(model.folder):
        say(
            f"not saved, as {name} ships with igpt: for `igpt classify`, probe a copy "
            f"(igpt convert {name} mine)"
        )


def _probe_checkpoints(run: Path, data: "PackedSet") -> dict[int, dict[str, Any]]:
    """The probe of each checkpoint by its step, recorded as `probe-step-N`."""
    from igpt.loading import load_run
    from igpt.manifest import fault_of
    from igpt.probing.exact import probe_model
    from igpt.progress import say
    from igpt.report.record import write_record
    from igpt.train.checkpoint import all_steps

    found = {}
    for step, path in sorted(all_steps(run)):
        if fault := fault_of(path):
            say(f"passed over {path}: {fault}")
            continue
        model = load_run(run, step=step)
        result = probe_model(model, data, raw_pixels=False, save=False)
        name = f"probe-step-{step:07d}"
        write_record(run, name, result, model=model.digest(), data=data.source, split="test")
        found[step] = result
    if not found:
        raise UserError(f"{run} keeps no checkpoint that can be probed: train it first")
    return found


def _print_checkpoints(
    results: dict[int, dict[str, Any]], model: str, data: "PackedSet", *, json: bool
) -> None:
    if json:
        about = {"model": model, "data": data.source, "split": "test"}
        print(json_format.dumps({**about, "checkpoints": results}))
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
    if vote := result.get("vote"):
        print(f"modal answer of {vote['n_masks']} masks: {vote['test_accuracy']:.2%}")
