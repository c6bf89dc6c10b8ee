"""Writes the tables of the record book into README.md beside this file and into RESULTS.md.

    python records/book.py

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; what is there already is replaced.
"""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import card
from keeping import SHIPPED

from igpt import shipped

HERE = Path(__file__).parent
# The model whose features stand beside others' at their cost.
AT_A_COST = "cifar10-32"


def trials_by_factor() -> dict[str, list[dict[str, Any]]]:
    """All trials of `ablate.py`."""
    trials = defaultdict(list)
    for line in (HERE / "ablations.jsonl").read_text().splitlines():
        trial = json.loads(line)
        trials[trial["factor"]].append(trial)
    return trials


def ablation_rows() -> list[str]:
    """One row a factor of entry 2: loss and its difference from the base, probe, cost, seeds."""
    trials = {
        factor: runs
        for factor, runs in trials_by_factor().items()
        if not factor.startswith("size-") and all("probe" in run for run in runs)
    }
    base = statistics.mean(trial["valid_nats"] for trial in trials["base"])
    rows = [
        "| factor | nats, mean (each seed) | against base | probe | CPU s a run | parameters |",
        "|---|---|---|---|---|---|",
    ]
    ordered = sorted(
        trials.items(), key=lambda item: statistics.mean(t["valid_nats"] for t in item[1])
    )
    for name, runs in ordered:
        nats = [run["valid_nats"] for run in runs]
        mean = statistics.mean(nats)
        each = ", ".join(f"{value:.3f}" for value in nats)
        probe = statistics.mean(run["probe"] for run in runs)
        cost = statistics.mean(run["cpu_s"] for run in runs)
        label = f"**{name}**" if name == "base" else name
        rows.append(
            f"| {label} | {mean:.3f} ({each}) | {mean - base:+.3f} | {100 * probe:.1f} % | "
            f"{cost:.0f} | {runs[0]['parameters']:,} |"
        )
    return rows


# What a change of entry 6 is compared with; the others with `again`.
COMPARED_WITH = {
    "batch-8-short-decay-adam-x3": "batch-8-short-decay",
    "batch-8-short-decay-adam-x5": "batch-8-short-decay",
    "short-decay-ema": "short-decay-again",
    "pool-1000-alternate": "pool-1000",
    "pool-1000-cautious-decay": "pool-1000",
}


def change_rows() -> list[str]:
    """One row a change of entry 6: loss, and its difference seed by seed from what it changes."""
    losses = {
        factor: {run["seed"]: run["valid_nats"] for run in runs}
        for factor, runs in trials_by_factor().items()
        if not any("probe" in run for run in runs)
    }
    rows = ["| change | nats, seeds 0, 1, 2 | compared with | difference |", "|---|---|---|---|"]
    differences = {}
    for name, held in losses.items():
        beside = losses[COMPARED_WITH.get(name, "again")]
        differences[name] = [held[seed] - beside[seed] for seed in sorted(held)]
    for name in sorted(losses, key=lambda name: statistics.mean(differences[name])):
        each = ", ".join(f"{losses[name][seed]:.3f}" for seed in sorted(losses[name]))
        base, gaps = COMPARED_WITH.get(name, "again"), differences[name]
        said = "- | -"
        if len(gaps) > 1 and any(gaps):
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            said = f"{base} | {statistics.mean(gaps):+.3f} ± {error:.3f}"
        rows.append(f"| {name} | {each} | {said} |")
    return rows


def scaling_rows() -> list[str]:
    """One row a size and budget."""
    rows = [
        "| width x layers | parameters | images | nats | probe | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    trials = [runs[0] for name, runs in trials_by_factor().items() if name.startswith("size-")]
    for trial in sorted(trials, key=lambda trial: (trial["parameters"], trial["images"])):
        size = trial["factor"].split("-")[1].replace("x", " x ")
        rows.append(
            f"| {size} | {trial['parameters']:,} | {trial['images']:,} | "
            f"{trial['valid_nats']:.3f} | {100 * trial['probe']:.1f} % | {trial['cpu_s']:.0f} |"
        )
    return rows


# Rows of a curve, or twice as many at most.
N_CURVE = 16


def curve_rows(name: str) -> list[str]:
    """Validation loss of a shipped model's run by images seen."""
    lines = [
        json.loads(line) for line in (SHIPPED / name / "metrics.jsonl").read_text().splitlines()
    ]
    rows = ["| images seen | nats per token, validation images |", "|---|---|"]
    points = [line for line in lines if "valid_nats" in line]
    every = max(1, len(points) // N_CURVE)
    kept = points[(len(points) - 1) % every :: every]  # the last one is among them
    return rows + [f"| {line['images']:,} | {line['valid_nats']:.4f} |" for line in kept]


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what stands between the marks of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    found, count = pattern.subn(lambda match: match[1] + content + "\n" + match[2], text)
    assert count == 1, name
    return found


def documents() -> dict[Path, dict[str, str]]:
    """The tables of each document by their names."""
    return {
        HERE / "README.md": {
            "ablations": "\n".join(ablation_rows()),
            "changes": "\n".join(change_rows()),
            "scaling": "\n".join(scaling_rows()),
            **{f"curve {name}": "\n".join(curve_rows(name)) for name in shipped.names()},
        },
        HERE.parent / "RESULTS.md": {
            **{f"shipped {name}": card.Book.of(name).table() for name in shipped.names()},
            "rivals at a cost": "\n".join(card.Book.of(AT_A_COST).cost_rows()),
        },
    }


def main() -> None:
    """Rewrite the tables."""
    for path, tables in documents().items():
        text = path.read_text()
        for name, table in tables.items():
            text = replaced(text, name, table)
        path.write_text(text)


if __name__ == "__main__":
    main()
