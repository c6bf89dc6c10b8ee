"""The files of `evaluations/` in a run folder: what was measured, on what, by which command."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igpt import runs


def write_record(
    run: Path, name: str, values: Mapping[str, Any], *, model: str, data: str, split: str
) -> Path:
    """Write `evaluations/NAME.json` with the command of this process.

    Args:
        run: folder of the run.
        name: of the evaluation, such as `probe`; an earlier one of that name is replaced.
        values: the figures, plain values for JSON.
        model: what was evaluated, as the user named it.
        data: the set it was evaluated on.
        split: that the figures are from.
    """
    path = run / "evaluations" / f"{name}.json"
    command = shlex.join(["igpt", *sys.argv[1:]])
    about = {"model": model, "data": data, "split": split, "command": command}
    runs.write_json(path, {**about, **values})
    return path


def read_records(run: Path) -> dict[str, dict[str, Any]]:
    """Every evaluation in a run folder by name, in alphabetical order.

    Raises:
        UserError: a file is not JSON.
    """
    found = {}
    for path in sorted((run / "evaluations").glob("*.json")):
        document = runs.read_json(path)
        if isinstance(document, dict):
            found[path.stem] = document
    return found
