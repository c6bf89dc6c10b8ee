"""The files of `evaluations/` in a run folder: what was measured, on what, by which command."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt import files
from igpt.errors import UserError
from igpt.system import own_command

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_record(
    run: Path,
    name: str,
    result: "Mapping[str, Any] | DataclassInstance",
    *,
    model: str,
    data: str | None = None,
    split: str | None = None,
    seed: int | None = None,
) -> Path:
    """Write `evaluations/NAME.json` with the command that this process carries out.

    Args:
        run: folder of the run.
        name: of the evaluation, such as `probe`; an earlier one of that name is replaced.
        result: the figures: a dataclass, or plain values for JSON.
        model: what was evaluated: its name or digest.
        data: the set it was evaluated on, if any.
        split: that the figures are from.
        seed: of the draws, if any.
    """
    figures = dict(result) if isinstance(result, Mapping) else dataclasses.asdict(result)
    document = {
        "model": model,
        "data": data,
        "split": split,
        "seed": seed,
        "command": own_command(),
        "result": figures,
    }
    path = run / "evaluations" / f"{name}.json"
    files.write_json(path, document)
    return path


def read_records(run: Path) -> dict[str, dict[str, Any]]:
    """Every evaluation in a run folder by name: its figures, with what is said about them.

    Raises:
        UserError: a file is not JSON, or is not a record.
    """
    found = {}
    for path in sorted((run / "evaluations").glob("*.json")):
        document = files.read_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("result"), dict):
            raise UserError(f"{path} is not a record of an evaluation: delete it")
        figures = document.pop("result")
        found[path.stem] = {**document, **figures}
    return found
