"""The files of a run's folder that say what it is: standard library only, so that reading is quick.

`config.json` holds the resolved configuration and, under `facts`, what else a run depends on and
where it comes from; `metrics.jsonl` what it said of itself.
"""

import json
from pathlib import Path
from typing import Any

from igpt.config import RunConfig
from igpt.errors import UserError
from igpt.files import read_json, write_json
from igpt.recipes import recipe as recipe_of

SEARCH_TABLE = "search.json"
"""In the folder of a search of the learning rate."""

# What of the facts decides how a run goes on, and as what it is stored.
_FACTS = {
    **dict.fromkeys(("data", "data_digest", "palette_digest", "command", "igpt"), str),
    **dict.fromkeys(("commands", "mixed"), list),
    **dict.fromkeys(("split", "init_from"), dict),
}


def is_run(folder: Path) -> bool:
    """Whether a folder says that it holds a run."""
    return (folder / "config.json").is_file()


def read_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The resolved configuration of a run folder, and the facts recorded beside it.

    Raises:
        UserError: there is no run, or its config.json cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no run (config.json is missing): check the path")
    document = read_json(path)
    if isinstance(document, dict) and "finetune" in document:
        raise UserError(f"{folder} holds a fine-tuning, not a pre-training: choose another folder")
    if not isinstance(document, dict) or "facts" not in document:
        raise UserError(f"{path} is not the config.json of a run: check the path")
    facts = document.pop("facts")
    config = RunConfig.from_dict(document, where=str(path))
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: facts is not an object: restore it")
    for name, kind in _FACTS.items():
        if name in facts and not isinstance(facts[name], kind):
            raise UserError(f"{path} is damaged: facts.{name} is {facts[name]!r}: restore it")
    return config, facts


def write_run(folder: Path, config: RunConfig, facts: dict[str, Any]) -> None:
    """Write a run's configuration, resolved, and its facts."""
    write_json(folder / "config.json", {**config.to_dict(), "facts": facts})


def check_new(folder: Path) -> None:
    """Refuse a folder in which something stands already.

    Raises:
        UserError: it holds a run, or something else.
    """
    if is_run(folder):
        if "facts" not in read_json(folder / "config.json"):
            raise UserError(f"{folder} is a model folder, not a run: choose another folder")
        raise UserError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another folder"
        )
    if (folder / SEARCH_TABLE).is_file():
        raise UserError(
            f"{folder} holds a search: add --search-lr --resume to go on with it, name one of its "
            "runs, or choose another folder"
        )
    others = [p.name for p in folder.iterdir() if p.name != "lock"] if folder.is_dir() else []
    if others:
        raise UserError(f"{folder} is not empty ({others[0]}, ...): choose another folder")


def starting_config(folder: Path, *, resume: bool, recipe: str | None) -> RunConfig:
    """What single options are laid over: at `resume` the settings of the run or search in RUN;
    where there is none, those of the recipe, else the plain defaults.

    Raises:
        UserError: there is no such recipe, or RUN cannot be read.
    """
    if resume and is_run(folder):
        return read_run(folder)[0]
    if resume and (table := folder / SEARCH_TABLE).is_file():
        return RunConfig.from_dict(read_json(table)["config"], where=str(table))
    return RunConfig() if recipe is None else recipe_of(recipe)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; what is none, as a kill or a power cut leaves it, is
    left out.
    """
    path, lines = run / "metrics.jsonl", []
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: move it away") from error
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
    return lines


def exported_step(folder: Path) -> int:
    """Updates behind the model folder that a run has exported; 0: there is none."""
    path = folder / "model" / "config.json"
    if not path.is_file():
        return 0
    document = read_json(path)
    own = document.get("igpt") if isinstance(document, dict) else None
    trained = own.get("trained") if isinstance(own, dict) else None
    step = trained.get("step") if isinstance(trained, dict) else None
    return step if isinstance(step, int) else 0
