"""The README's figures of the model that ships, from the record book and the model itself.

    python records/figures.py FOLDER

FOLDER is the staged or shipped model. Writes `docs/images/shipped-*.png`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from card import COUNTS, RIVALS, SHIPPED

from igpt import compute
from igpt.images.grid import tile, to_png_bytes
from igpt.jobs.opening import open_for
from igpt.loading import load
from igpt.report.charts import Chart, Level, Series
from igpt.report.grids import N_COMPLETED, completions

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
# Points of the training curve: single batches are noise.
N_MEANS = 150


def write(name: str, data: bytes) -> None:
    """One picture."""
    (IMAGES / f"shipped-{name}.png").write_bytes(data)
    print(name)


def pictures(folder: Path) -> None:
    """Samples and completions."""
    model = load(folder)
    originals = open_for(model, "cifar10").images("valid")[:N_COMPLETED]
    drawn = completions(model, originals, n=5, seed=0, enlarge=6)
    write("completions", to_png_bytes(drawn))
    write("samples", to_png_bytes(tile(model.sample(48, seed=0), columns=12, enlarge=5)))


def probe_curve() -> Chart:
    """Validation accuracy by layer."""
    series = []
    for pooling, label in (("mean", "mean, the paper's"), ("bands", "bands and spread")):
        scores = SHIPPED[f"probe, {pooling}"]["by_layer"]
        layers = [score["layer"] for score in scores]
        series.append(Series(label, layers, [s["valid_accuracy"] for s in scores], "both"))
    pixels = SHIPPED["probe, raw pixels"]["valid_accuracy"]
    return Chart(
        series=tuple(series),
        levels=(Level("raw pixels", pixels),),
        x_label="layer",
        y_label="validation accuracy",
        percent=True,
        whole_x=True,
    )


def few_labels() -> Chart:
    """Test accuracy by labels a class, with the spread over subsets."""
    series = []
    for pooling in ("mean", "bands", "raw pixels"):
        found = [SHIPPED[f"few labels, {count}, {pooling}"] for count in COUNTS]
        series.append(_accuracies(pooling, found))
    rivals = [RIVALS[name] for count in COUNTS if (name := f"wide-resnet-{count}") in RIVALS]
    series.append(_accuracies("Wide ResNet 28-2 from scratch", rivals))
    return Chart(
        series=tuple(series),
        x_label="labels a class",
        y_label="test accuracy",
        percent=True,
        x_names=tuple(map(str, COUNTS)),
    )


def _accuracies(label: str, found: list[dict[str, Any]]) -> Series:
    places = [COUNTS.index(figures["labels_per_class"]) for figures in found]
    means, spreads = ([figures[key] for figures in found] for key in ("mean", "sd"))
    return Series(label, places, means, "both", error=spreads)


def loss_and_probe() -> Chart:
    """The paper's Figure 3: a quick probe of checkpoints against their loss."""
    points = [value for name, value in SHIPPED.items() if name.startswith("checkpoint, ")]
    points.sort(key=lambda point: -point["valid_nats"])
    nats = [point["valid_nats"] for point in points]
    series = [
        Series(label, nats, [point[pooling] for point in points], "both")
        for pooling, label in (("mean", "mean, the paper's"), ("bands", "bands and spread"))
    ]
    return Chart(
        series=tuple(series),
        x_label="nats per token on validation",
        y_label="quick probe, validation",
        percent=True,
    )


def loss_curve() -> Chart:
    """Training and validation loss by images seen."""
    lines = [json.loads(line) for line in (HERE / "run-metrics.jsonl").read_text().splitlines()]
    batches, valid = (
        np.array([(line["images"], line[key]) for line in lines if key in line])
        for key in ("loss_nats", "valid_nats")
    )
    groups = np.array_split(batches, min(len(batches), N_MEANS))
    means = np.stack([group.mean(axis=0) for group in groups])
    return Chart(
        series=(
            Series("training batches, means", *means.T),
            Series("validation", *valid.T, "both"),
        ),
        x_label="images seen",
        y_label="nats per token",
        y_top=3.8,
    )


def main(folder: str) -> None:
    """Every figure that the results allow."""
    compute.set_threads()
    write("loss", loss_curve().png())
    write("probe", probe_curve().png())
    write("few-labels", few_labels().png())
    if any(name.startswith("checkpoint, ") for name in SHIPPED):
        write("loss-against-probe", loss_and_probe().png())
    pictures(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
