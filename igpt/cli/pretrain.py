"""`igpt pretrain`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import UseAppendAction

from igpt.cli.outputs import Config, Data, Run, print_json, show
from igpt.config import RunConfig

if TYPE_CHECKING:
    from igpt.jobs import pretrain as runs


def pretrain(
    data: Data,
    run: Run,
    *,
    config: Config,
    mix: UseAppendAction[tuple[str, ...]] = (),
    workers: int = 0,
    resume: bool = False,
    init_from: str | None = None,
    search_lr: bool = False,
    plan: bool = False,
    json: bool = False,
) -> None:
    """Train a model on images without labels (paper §3.4).

    Args:
        data: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        run: folder to write; must be new unless --resume.
        config: every setting of the run.
        mix: WEIGHT:AUGMENT:DATA mixes other images in; may come several times. 0.5:none:web.tar
            draws half as many images from web.tar as from DATA and leaves them as they are;
            validation stays that of DATA.
        workers: processes that decode images anew under augment imagenet; 0: one a core.
        resume: go on from the newest intact checkpoint, with the settings of RUN; where RUN is not
            there yet, start it.
        init_from: a run or model folder whose weights and palette to start from.
        search_lr: train with 0.01, 0.003, 0.001, ... until the final validation loss rises; every
            run is kept in RUN/lr-*, and RUN/search.json is the table.
        plan: only say what the run would cost: parameters, operations, memory and time.
        json: print the result as one JSON document.
    """
    from igpt.model import native

    if not plan:
        native.build_ahead("attention")
    from igpt import compute

    compute.set_threads()
    if plan:
        _print_plan(config, json=json)
        return
    from igpt.cli.outputs import folder_to_fill
    from igpt.jobs.pretrain import train_run
    from igpt.jobs.search import search_rates
    from igpt.system import own_command
    from igpt.train.distributed import joined

    options: dict[str, Any] = {
        "command": own_command(),
        "mix": mix,
        "workers": workers,
        "resume": resume,
        "init_from": init_from,
    }
    folder = folder_to_fill(run, "RUN")
    with joined() as world:
        if search_lr:
            found = search_rates(data, folder, config, **options)
        else:
            result = train_run(data, folder, config, **options)
    if world.is_first and search_lr:
        _print_search(folder, found, json=json)
    elif world.is_first:
        _print_result(result, json=json)


def _print_plan(config: RunConfig, *, json: bool) -> None:
    from igpt.train.settings import plan_of

    plan = plan_of(config)
    show(dataclasses.asdict(plan), plan.lines(), json=json)


def _print_result(run: "runs.Run", *, json: bool) -> None:
    model = str(run.folder / "model")
    if json:
        folded = {} if run.folded_nats is None else {"folded_nats": run.folded_nats}
        print_json({"step": run.step, "valid_nats": run.valid_nats, **folded, "model": model})
        return
    if run.valid_nats is not None:
        loss = f"validation {run.valid_nats:.4f} nats per token"
    elif run.folded_nats is not None:
        loss = f"{run.folded_nats:.4f} nats per token on validation images that it was trained on"
    elif run.config.data.fold_validation:
        loss = "the validation images were trained on"
    else:
        loss = "no validation loss is known"
    print(f"{run.folder}: step {run.step}, {loss}; model in {model}")


def _print_search(folder: Path, found: dict[str, Any], *, json: bool) -> None:
    """The table for a person, or as one JSON document; each run by its whole path."""
    trials = [{**trial, "run": str(folder / trial["run"])} for trial in found["trials"]]
    best = {**found["best"], "run": str(folder / found["best"]["run"])}
    if json:
        print_json({"trials": trials, "best": best})
        return
    print(f"{'learning rate':<15}{'validation, nats per token':<28}run")
    for trial in trials:
        loss = "diverged" if trial["valid_nats"] is None else f"{trial['valid_nats']:.4f}"
        print(f"{trial['lr']:<15g}{loss:<28}{trial['run']}")
    print(f"best: {best['lr']:g}, in {best['run']}")
