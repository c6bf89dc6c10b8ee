"""A picture of measured growth: `python -m igpt.bench.plot GROWTH.json PICTURE`."""

import re
import sys
from pathlib import Path
from typing import Any

from igpt.files import read_json


def lines_of(rows: list[dict[str, Any]], label: str) -> tuple[list[int], list[float], list[float]]:
    """Sizes, milliseconds an image and peak MiB of the steps measured against `label`."""
    sizes, spans, memory = [], [], []
    for row in rows:
        if not row["row"].startswith(f"step against {label}:"):
            continue
        found = dict(re.findall(r"(\w)=(\d+)", row["row"]))
        sizes.append(int(found[label]))
        spans.append(1e3 * row["ours_s"] / int(found["B"]))
        memory.append(row["memory_bytes"] / 2**20)
    return sizes, spans, memory


def draw(document: dict[str, Any], path: Path) -> None:
    """Time an image and memory against T, B, d and L, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, 4)
    for column, label in enumerate("TBdL"):
        sizes, spans, memory = lines_of(document["rows"], label)
        top, bottom = axes[0, column], axes[1, column]
        top.loglog(sizes, spans, "o-")
        top.set_yticks([spans[0], spans[-1]], [f"{span:,.1f}" for span in (spans[0], spans[-1])])
        bottom.semilogx(sizes, memory, "o-")
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel(label)
        for axis in (top, bottom):
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("ms an image")
    axes[1, 0].set_ylabel("peak MiB")
    figure.savefig(path)


if __name__ == "__main__":
    draw(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
