"""What a run writes down of itself: metrics.jsonl, one line a log step."""

import json
from pathlib import Path
from typing import Any

from igpt.files import write_bytes, write_error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one torn by a kill (the last) is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def drop_metrics_after(run: Path, step: int) -> None:
    """Forget lines that a killed run wrote after the checkpoint it resumes from."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    write_bytes(run / "metrics.jsonl", "".join(json.dumps(k) + "\n" for k in kept).encode())


def write_metrics(run: Path, line: dict[str, Any]) -> None:
    """Append one line, whole."""
    path = run / "metrics.jsonl"
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise write_error(path, error) from error
