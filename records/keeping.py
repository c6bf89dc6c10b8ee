"""Figures in a JSON file: each has a name, says what it was measured on, and is measured once.

What was measured of a model that ships lies in `shipped/NAME/`, NAME being its folder's.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from igpt.files import write_json

SHIPPED = Path(__file__).parent / "shipped"
# Layers that are probed side by side.
N_JOINED = 3


def read_figures(path: Path) -> dict[str, Any]:
    """All figures of a file by name; none where there is no file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def measured(
    path: Path, name: str, measure: Callable[[], dict[str, Any]], *, of: str, again: bool = False
) -> None:
    """Add figures and their cost to a file, unless it has them already.

    Args:
        path: of the file.
        name: of the figures.
        measure: what measures them.
        of: digest of the model, palette or data that they are of; figures of another are replaced.
        again: measure them whether they are there or not.
    """
    if not again and read_figures(path).get(name, {}).get("of") == of:
        print(f"{name}: measured before", flush=True)
        return
    start_s = time.process_time()
    figures = measure()
    cpu_s = round(time.process_time() - start_s, 1)
    write_json(path, {**read_figures(path), name: {**figures, "of": of, "cpu_s": cpu_s}})
    print(name, json.dumps(figures)[:300], f"({cpu_s} CPU seconds)", flush=True)
