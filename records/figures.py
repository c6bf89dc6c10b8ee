"""The README's figures of the model that ships, from `shipped.json` and the model itself.

    python records/figures.py FOLDER METRICS.jsonl

FOLDER is the staged or shipped model; METRICS that of its run. Writes `docs/images/shipped-*.png`.
"""

import json
import sys
from pathlib import Path

from igpt import compute
from igpt.cli.opening import open_for
from igpt.cli.showing import N_COMPLETED, completion_picture
from igpt.evaluate.charts import Chart, Level, Series
from igpt.images.grid import tile, to_png_bytes
from igpt.pixelmodel import load

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
FIGURES = json.loads((HERE / "shipped.json").read_text())


def write(name: str, data: bytes) -> None:
    """One picture."""
    (IMAGES / f"shipped-{name}.png").write_bytes(data)
    print(name)


def pictures(folder: Path) -> None:
    """Samples and completions."""
    model = load(folder)
    originals = open_for(model, "cifar10").images("valid")[:N_COMPLETED]
    write("completions", to_png_bytes(completion_picture(model, originals)))
    write("samples", to_png_bytes(tile(model.sample(48, seed=0), columns=12, enlarge=5)))


def probe_curve() -> Chart:
    """Validation accuracy by layer."""
    series = []
    for pooling, label in (("mean", "mean, the paper's"), ("bands", "bands and spread")):
        scores = FIGURES[f"probe, {pooling}"]["by_layer"]
        layers = [score["layer"] for score in scores]
        series.append(Series(label, layers, [s["valid_accuracy"] for s in scores], "both"))
    pixels = FIGURES["probe, raw pixels"]["valid_accuracy"]
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
    counts = sorted({int(name.split(", ")[1]) for name in FIGURES if name.startswith("few")})
    series = []
    for pooling in ("mean", "bands", "raw pixels"):
        rows = [FIGURES[f"few labels, {count}, {pooling}"] for count in counts]
        means, spreads = ([row[key] for row in rows] for key in ("mean", "sd"))
        series.append(Series(pooling, list(range(len(counts))), means, "both", error=spreads))
    return Chart(
        series=tuple(series),
        x_label="labels a class",
        y_label="test accuracy",
        percent=True,
        x_names=tuple(map(str, counts)),
    )


def loss_and_probe() -> Chart:
    """The paper's Figure 3: a quick probe of checkpoints against their loss."""
    points = FIGURES["checkpoints"]["points"]
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


def loss_curve(metrics: Path) -> Chart:
    """Training and validation loss by images seen."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    parts = {}
    for key in ("loss_nats", "valid_nats"):
        points = [(line["images"], line[key]) for line in lines if key in line]
        parts[key] = ([x for x, _ in points], [y for _, y in points])
    return Chart(
        series=(
            Series("training batches", *parts["loss_nats"]),
            Series("validation", *parts["valid_nats"], "both"),
        ),
        x_label="images seen",
        y_label="nats per token",
        y_top=3.8,
    )


def main(folder: str, metrics: str) -> None:
    """Every figure that the results allow."""
    compute.set_threads()
    write("loss", loss_curve(Path(metrics)).png())
    write("probe", probe_curve().png())
    write("few-labels", few_labels().png())
    if "checkpoints" in FIGURES:
        write("loss-against-probe", loss_and_probe().png())
    pictures(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
