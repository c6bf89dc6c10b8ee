"""The learning rate, found as the paper does: ever lower ones until the final loss rises (§3.4).

Each rate is a run of its own, kept, below the search's folder; `search.json` says from the first
rate on what is searched, so that a search that is stopped goes on as it was begun.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpt.config import RunConfig
from igpt.errors import Diverged, UserError
from igpt.files import FolderLock, read_json, write_json
from igpt.jobs.pretrain import train_run
from igpt.progress import say
from igpt.train.distributed import default_world
from igpt.train.folder import SEARCH_TABLE, is_run, read_run

FIRST = -2
LOWEST = -6


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the search."""

    lr: float
    """Peak learning rate."""
    valid_nats: float | None
    """Final validation loss, nats per token; none: the run diverged."""
    run: str
    """Its folder, in the search's."""

    @property
    def loss(self) -> float:
        """The validation loss, infinite where the run diverged."""
        return math.inf if self.valid_nats is None else self.valid_nats


def rates() -> Iterator[float]:
    """0.01, 0.003, 0.001, 0.0003, ... down to 1e-6."""
    for exponent in range(FIRST, LOWEST - 1, -1):
        yield float(f"1e{exponent}")
        if exponent > LOWEST:
            yield float(f"3e{exponent - 1}")


def search(train: Callable[[float], Trial]) -> Iterator[tuple[Trial, ...]]:
    """Train with one rate after another; yields all trials so far after each.

    It ends after the first finite loss that is above the one before, or at the lowest rate.

    Args:
        train: makes one run and gives its outcome.
    """
    trials: list[Trial] = []
    for lr in rates():
        trials.append(train(lr))
        yield tuple(trials)
        if len(trials) > 1 and trials[-1].loss > trials[-2].loss:
            return


def best(trials: tuple[Trial, ...]) -> Trial | None:
    """The trial of the lowest loss; none where all diverged."""
    finite = [trial for trial in trials if trial.valid_nats is not None]
    return min(finite, key=lambda trial: trial.loss, default=None)


def search_rates(
    data: str,
    folder: Path,
    config: RunConfig,
    *,
    command: str,
    mix: Sequence[str] = (),
    workers: int = 0,
    resume: bool = False,
    init_from: str | None = None,
) -> dict[str, Any]:
    """Train with ever lower learning rates until the final validation loss rises.

    Args:
        data: what the command line calls DATA.
        folder: gets a run folder a rate, and the table `search.json`.
        config: of all runs; its learning rate is not used.
        command: that the folders record.
        mix: as for a run; at `resume` the search's own.
        workers: as for a run.
        resume: go on with a search that is there.
        init_from: as for a run; at `resume` the search's own.

    Returns:
        `trials`, each with `lr`, `valid_nats` (none: diverged) and `run`; `best`, one of them.

    Raises:
        UserError: the folder does not allow it, or every rate diverged.
    """
    if config.data.fold_validation:
        raise UserError(
            "--search-lr chooses by the loss on validation images, which data.fold_validation "
            "trains on: drop one of them"
        )
    world = default_world()
    asked = {"config": config.to_dict(), "mix": list(mix), "init_from": init_from}
    table: dict[str, Any] = world.told(lambda: _table(folder, asked, resume=resume))
    known = {trial["lr"]: _trial_of(trial) for trial in table["trials"]}

    def tried(lr: float) -> Trial:
        return known[lr] if lr in known else train_rate(lr)

    def train_rate(lr: float) -> Trial:
        say(f"== learning rate {lr:g}")
        run = folder / f"lr-{lr:g}"
        goes_on = world.told(lambda: is_run(run))
        own = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=lr))
        try:
            result = train_run(
                data,
                run,
                read_run(run)[0] if goes_on else own,
                command=command,
                mix=table["mix"],
                workers=workers,
                resume=goes_on,
                init_from=table["init_from"],
            )
        except Diverged as error:
            say(f"learning rate {lr:g} diverged: {error}")
            return Trial(lr=lr, valid_nats=None, run=run.name)
        if result.valid_nats is None:
            raise UserError(f"{run} has no validation loss, by which --search-lr would choose")
        return Trial(lr=lr, valid_nats=result.valid_nats, run=run.name)

    with FolderLock(folder) if world.is_first else nullcontext():
        _write(folder, table, world.is_first)
        for trials in search(tried):
            winner = best(trials)
            table["trials"] = [dataclasses.asdict(trial) for trial in trials]
            table["best"] = None if winner is None else dataclasses.asdict(winner)
            _write(folder, table, world.is_first)
    if table["best"] is None:
        raise UserError(f"every learning rate in {folder} diverged: look at the data and the model")
    return {"trials": table["trials"], "best": table["best"]}


def _write(folder: Path, table: dict[str, Any], is_first: bool) -> None:
    if is_first:
        write_json(folder / SEARCH_TABLE, table)


def _trial_of(values: dict[str, Any]) -> Trial:
    """A trial from the table; 0.1 stored the whole path of its run."""
    return Trial(**{**values, "run": Path(values["run"]).name})


def _table(folder: Path, asked: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """The table of a search: what is there, else a new one; the folder must allow it.

    Raises:
        UserError: it holds something else, or was searched with other settings.
    """
    path = folder / SEARCH_TABLE
    if path.is_file():
        if not resume:
            raise UserError(
                f"{folder} already holds a search: add --resume to go on with it, "
                "or choose another folder"
            )
        table: dict[str, Any] = {"mix": [], "init_from": None, **read_json(path)}
        held = {**table, "config": RunConfig.from_dict(table["config"], where=str(path)).to_dict()}
        for key, value in asked.items():
            if value and value != held[key]:
                raise UserError(
                    f"{folder} was searched with other settings: give none of them anew, "
                    "or choose another folder"
                )
        return table
    others = [p.name for p in folder.iterdir() if p.name != "lock"] if folder.is_dir() else []
    if others:
        raise UserError(f"{folder} is not empty ({others[0]}, ...): choose another folder")
    return {**asked, "trials": [], "best": None}
