"""`igpt finetune`."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from igpt.cli.outputs import Data, Model, show
from igpt.config import FinetuneConfig
from igpt.system import at_home


def finetune(
    model: Model,
    data: Data,
    run: Positional[Annotated[str | None, arg(metavar="[RUN]")]] = None,
    *,
    finetune: Annotated[FinetuneConfig, arg(name="finetune")] = FinetuneConfig(),  # noqa: B008
    rates: tuple[float, ...] = (),
    scratch: bool = False,
    image_size: int | None = None,
    seeds: int = 1,
    max_images: int | None = None,
    workers: int = 0,
    resume: bool = False,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Train all weights to classify (paper §2.3); step and rate chosen on validation, then test.

    Under torchrun all processes share the work.

    Args:
        model: a run, a model folder or a shipped name.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        run: folder to write: checkpoints, metrics and the model; must be new unless --resume.
            None: one in the cache, with which the same command goes on.
        finetune: how it is trained.
        rates: learning rates to try in turn until validation accuracy falls; one that diverges is
            passed over. None: finetune.lr.
        scratch: start from fresh weights: the supervised baseline with the same budget.
        image_size: train at this size; position embeddings are interpolated. None: the model's.
        seeds: fine-tune so many times, with finetune.seed and those after it; test accuracy is
            then the mean, with its standard deviation. The first seed searches the rate.
        max_images: look at so many images of each split at most, drawn at random; none: all.
        workers: processes that crop images anew under augment imagenet; 0: one a core.
        resume: go on with RUN, by its own settings; --finetune.total-steps and
            --finetune.patience may move its end.
        out: folder, new or empty, to save the fine-tuned model to as well (the first seed's), for
            `igpt classify` and `igpt convert --to transformers-classifier`.
        json: print the result as one JSON document.
    """
    from igpt.model import native

    native.build_ahead("attention")
    from igpt import compute
    from igpt.cli.outputs import empty_folder
    from igpt.jobs.finetune import Asked, finetune_model
    from igpt.jobs.opening import open_labelled, opened, recorded
    from igpt.system import own_command
    from igpt.train.distributed import joined

    asked = Asked(config=finetune, rates=rates, scratch=scratch, seeds=seeds)
    compute.set_threads()
    with joined() as world:
        copy_to = world.told(lambda: None if out is None else empty_folder(out))
        place, loaded = opened(model, device="cpu")
        with world.first_alone():
            packed = open_labelled(loaded, data, image_size=image_size, max_images=max_images)
        found = finetune_model(
            loaded,
            packed,
            None if run is None else at_home(run),
            asked,
            place=place,
            command=own_command(),
            resume=resume,
            workers=workers,
        )
        if not world.is_first:
            return
        if copy_to is not None:
            found.model.save(copy_to)
        result = {**found.result, "run": str(found.folder)}
        name = _name(result, loaded.image_size)
        document = recorded(
            place,
            loaded,
            name,
            result,
            data=packed,
            seed=finetune.seed,
            precision=finetune.precision,
        )
    show(document, _lines(result), json=json)


def _lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    folded = ", repeated on training and validation images" if result["folded"] else ""
    lines = [
        f"best at step {result['step']}, rate {result['lr']:g}: "
        f"validation accuracy {result['valid_accuracy']:.2%}",
        f"test accuracy: {result['test_accuracy']:.2%} ± {result['test_accuracy_se']:.2%} "
        f"on {result['n_test']:,} images{folded}",
    ]
    if len(result["test_accuracies"]) > 1:
        each = ", ".join(f"{accuracy:.2%}" for accuracy in result["test_accuracies"])
        spread = result["test_accuracy_sd"]
        lines.append(f"  over {len(result['test_accuracies'])} seeds: {each}; ")
        lines[-1] += f"standard deviation {spread:.2%}"
    return [*lines, f"model in {Path(result['run']) / 'model'}"]


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
