"""`igpt pretrain --search-lr`: one run a learning rate, all of them kept, and a table."""

import dataclasses
import json as json_format
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from igpt.config import RunConfig
from igpt.errors import Diverged, UserError
from igpt.files import FolderLock, read_json, write_json

TABLE = "search.json"
# (run folder, its configuration, whether it goes on) to what the run ended with.
Train = Callable[[Path, RunConfig, bool], dict[str, Any]]


def search_rates(
    train: Train, folder: Path, config: RunConfig, *, resume: bool, is_first: bool
) -> dict[str, Any]:
    """Train with ever lower learning rates until the final validation loss rises (paper §3.4).

    Args:
        train: trains one run.
        folder: gets a run folder a rate, and the table `search.json`.
        config: of all runs; its learning rate is not used.
        resume: go on with a search that is there.
        is_first: whether this process writes the table.

    Returns:
        `trials`, each with `lr`, `valid_nats` (none: diverged) and `run`; `best`, one of them.

    Raises:
        UserError: the folder does not allow it, or every rate diverged.
    """
    from igpt.progress import say
    from igpt.train.search import Trial, best, search
    from igpt.train.setup import read_run

    known = {trial["lr"]: Trial(**trial) for trial in _trials_of(folder, config, resume=resume)}

    def tried(lr: float) -> Trial:
        if lr in known:
            return known[lr]
        run = folder / f"lr-{lr:g}"
        say(f"== learning rate {lr:g}")
        goes_on = (run / "config.json").is_file()
        own = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=lr))
        try:
            # What a run has stored has no `auto` left.
            result = train(run, read_run(run)[0] if goes_on else own, goes_on)
            valid_nats = result["valid_nats"]
        except Diverged as error:
            say(f"learning rate {lr:g} diverged: {error}")
            valid_nats = None
        return Trial(lr=lr, valid_nats=valid_nats, run=str(run))

    table: dict[str, Any] = {"config": config.to_dict(), "trials": [], "best": None}
    with FolderLock(folder) if is_first else nullcontext():
        for trials in search(tried):
            winner = best(trials)
            table["trials"] = [dataclasses.asdict(trial) for trial in trials]
            table["best"] = None if winner is None else dataclasses.asdict(winner)
            if is_first:
                write_json(folder / TABLE, table)
    if table["best"] is None:
        raise UserError(f"every learning rate in {folder} diverged: look at the data and the model")
    return {"trials": table["trials"], "best": table["best"]}


def _trials_of(folder: Path, config: RunConfig, *, resume: bool) -> list[dict[str, Any]]:
    """What an earlier call found; the folder must be new or hold a search to go on with."""
    if (folder / TABLE).is_file():
        if not resume:
            raise UserError(
                f"{folder} already holds a search: add --resume to go on with it, "
                "or choose another folder"
            )
        table = read_json(folder / TABLE)
        if RunConfig.from_dict(table["config"], where=str(folder / TABLE)) != config:
            raise UserError(
                f"{folder} was searched with other settings: give none of them anew, "
                "or choose another folder"
            )
        trials: list[dict[str, Any]] = table["trials"]
        return trials
    others = [p.name for p in folder.iterdir() if p.name != "lock"] if folder.is_dir() else []
    if others and not resume:
        raise UserError(f"{folder} is not empty ({others[0]}, ...): choose another folder")
    return []


def print_search(found: dict[str, Any], *, json: bool) -> None:
    """The table for a person, or as one JSON document."""
    if json:
        print(json_format.dumps(found))
        return
    print(f"{'learning rate':<15}{'validation, nats per token':<28}run")
    for trial in found["trials"]:
        loss = "diverged" if trial["valid_nats"] is None else f"{trial['valid_nats']:.4f}"
        print(f"{trial['lr']:<15g}{loss:<28}{trial['run']}")
    print(f"best: {found['best']['lr']:g}, in {found['best']['run']}")
