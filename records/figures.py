"""The documents' figures of a model that ships, from the record book and the model itself.

    python records/figures.py FOLDER

FOLDER is the staged or shipped model, named as it. Writes `docs/images/NAME-*.png`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from card import COUNTS, Book
from keeping import SHIPPED

from igpt import compute
from igpt.images.grid import enlargement, tile, to_png_bytes
from igpt.jobs.opening import open_for
from igpt.loading import load
from igpt.report.charts import Chart, Level, Series
from igpt.report.grids import N_COMPLETED, completions

IMAGES = Path(__file__).parent.parent / "docs" / "images"
# Points of the training curve: single batches are noise.
N_MEANS = 150


@dataclass(frozen=True, slots=True)
class Drawn:
    """Draws the figures of one model.

    Args:
        name: of the model and its book.
        book: what was measured of it.
    """

    name: str
    book: Book

    def write(self, what: str, data: bytes) -> None:
        """One picture."""
        path = IMAGES / f"{self.name}-{what}.png"
        path.write_bytes(data)
        print(path.name)

    def pictures(self, folder: Path) -> None:
        """Samples and completions."""
        model = load(folder)
        originals = open_for(model, "cifar10").images("valid")[:N_COMPLETED]
        drawn = completions(model, originals, n=5, seed=0)
        self.write("completions", to_png_bytes(drawn))
        samples = tile(model.sample(48, seed=0), columns=12, enlarge=enlargement(model.image_size))
        self.write("samples", to_png_bytes(samples))

    def probe_curve(self) -> Chart:
        """Validation accuracy by layer."""
        series = []
        for pooling, label in (("mean", "mean, the paper's"), ("bands", "bands and spread")):
            scores = self.book.figures[f"probe, {pooling}"]["by_layer"]
            layers = [score["layer"] for score in scores]
            series.append(Series(label, layers, [s["valid_accuracy"] for s in scores], "both"))
        pixels = self.book.figures.get("probe, raw pixels")
        levels = () if pixels is None else (Level("raw pixels", pixels["valid_accuracy"]),)
        return Chart(
            series=tuple(series),
            levels=levels,
            x_label="layer",
            y_label="validation accuracy",
            percent=True,
            whole_x=True,
        )

    def few_labels(self) -> Chart:
        """Test accuracy by labels a class, with the spread over subsets."""
        series = []
        for pooling in ("mean", "bands", "raw pixels"):
            found = [self.book.figures[f"few labels, {count}, {pooling}"] for count in COUNTS]
            series.append(_accuracies(pooling, found))
        names = [f"wide-resnet-{count}" for count in COUNTS]
        if rivals := [self.book.rivals[name] for name in names if name in self.book.rivals]:
            series.append(_accuracies("Wide ResNet 28-2 from scratch", rivals))
        return Chart(
            series=tuple(series),
            x_label="labels a class",
            y_label="test accuracy",
            percent=True,
            x_names=tuple(map(str, COUNTS)),
        )

    def loss_and_probe(self) -> Chart:
        """The paper's Figure 3: a quick probe of checkpoints against their loss."""
        points = sorted(self.book.checkpoints(), key=lambda point: -point["valid_nats"])
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

    def loss_curve(self) -> Chart:
        """Training and validation loss by images seen."""
        lines = (SHIPPED / self.name / "metrics.jsonl").read_text().splitlines()
        held = [json.loads(line) for line in lines]
        batches, valid = (
            np.array([(line["images"], line[key]) for line in held if key in line])
            for key in ("loss_nats", "valid_nats")
        )
        groups = np.array_split(batches, min(len(batches), N_MEANS))
        means = np.stack([group.mean(axis=0) for group in groups])
        return Chart(
            series=(
                Series("training batches, means", means[:, 0].tolist(), means[:, 1].tolist()),
                Series("validation", valid[:, 0].tolist(), valid[:, 1].tolist(), "both"),
            ),
            x_label="images seen",
            y_label="nats per token",
            y_top=min(3.8, float(means[:, 1].max())),
        )


def _accuracies(label: str, found: list[dict[str, Any]]) -> Series:
    places = [COUNTS.index(figures["labels_per_class"]) for figures in found]
    means, spreads = ([figures[key] for figures in found] for key in ("mean", "sd"))
    return Series(label, places, means, "both", error=spreads)


def main(place: str) -> None:
    """Every figure that the results allow."""
    compute.set_threads()
    folder = Path(place)
    drawn = Drawn(folder.name, Book.of(folder.name))
    drawn.write("loss", drawn.loss_curve().png())
    drawn.pictures(folder)
    if "probe, bands" in drawn.book.figures:
        drawn.write("probe", drawn.probe_curve().png())
    if f"few labels, {COUNTS[0]}, mean" in drawn.book.figures:
        drawn.write("few-labels", drawn.few_labels().png())
    if drawn.book.checkpoints():
        drawn.write("loss-against-probe", drawn.loss_and_probe().png())


if __name__ == "__main__":
    main(*sys.argv[1:])
