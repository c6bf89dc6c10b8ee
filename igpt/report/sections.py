"""The sections of a report: pictures, probe, learning curve, palette."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from igpt.config import RunConfig
from igpt.report import page
from igpt.report.charts import Chart, Level, Series
from igpt.report.page import percent
from igpt.tokens.palette import Palette

MAX_CURVE_POINTS = 400
MAX_TABLE_ROWS = 25
POOLED = {
    "mean": "averaged over all positions",
    "bands": "averaged over four bands of rows, beside their spread over all positions",
}


def samples_section(run_folder: Path, record: dict[str, Any]) -> str:
    path, when = _kept(run_folder / "pictures", "samples")
    return _pictures(
        path,
        title="Pictures it makes up",
        alt="A grid of pictures drawn by the model",
        caption="Drawn pixel by pixel, left to right and top to bottom, each from the model's own "
        f"prediction; the first ones drawn, none picked out{when or _how_drawn(record)}.",
    )


def _kept(pictures: Path, name: str) -> tuple[Path, str]:
    """A picture of the model, else the last that training drew; of that one, when it was."""
    drawn = sorted((pictures / "training").glob(f"{name}-*.png"))
    if (path := pictures / f"{name}.png").is_file() or not drawn:
        return path, ""
    return drawn[-1], f" (while it trained, at step {int(drawn[-1].stem.split('-')[1]):,})"


def _how_drawn(record: dict[str, Any]) -> str:
    """What a record says of the draw, as the end of a sentence."""
    known = [
        f"{name} {record[name]}"
        for name in ("temperature", "split", "seed")
        if record.get(name) is not None
    ]
    return f" ({', '.join(known)})" if known else ""


def completions_section(run_folder: Path, record: dict[str, Any]) -> str:
    path, when = _kept(run_folder / "pictures", "completions")
    # Where no image is left for validation, training draws some that it trains on.
    told = when or f", from images that it never trained on{_how_drawn(record)}"
    return _pictures(
        path,
        title="Halves it completes",
        alt="Rows of pictures: what was given, completions, the original",
        caption="In each row: the upper half that was given, completions drawn by the model, and "
        f"last the original{told}.",
    )


def _pictures(path: Path, *, title: str, alt: str, caption: str) -> str:
    if not path.is_file():
        return ""
    return page.section(title, page.picture(path.read_bytes(), alt=alt, caption=caption))


def probe_section(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    scores = record["by_layer"]
    pixels = record.get("raw_pixels")
    pooled = POOLED[record.get("pooling", "mean")]
    text = (
        f"A linear classifier is fitted on the frozen features of each layer, {pooled}. "
        "Layer and strength of the penalty are chosen on validation; the chosen one is fitted "
        "again on train and validation together and looks at the test images once: "
        f"{percent(record['test_accuracy'])} ± {100 * record['test_accuracy_se']:.1f}"
    )
    text += f", against {percent(pixels['test_accuracy'])} from raw pixels." if pixels else "."
    if bands := record.get("bands"):
        text += (
            " The mean over all positions forgets where something was seen. Means of four bands "
            "of rows, and how much each number varies, give "
            f"{percent(bands['test_accuracy'])} in its place (layer {bands['layer']})."
        )
    rows = [_score_row(str(score["layer"]), score) for score in scores]
    if pixels:
        rows.append(_score_row("raw pixels", pixels["by_layer"][0]))
    layers = [score["layer"] for score in scores]
    named = {"sgd": "learning rate", "knn": "neighbours"}
    strength = named.get(record.get("solver", ""), "penalty strength C")
    columns = ("layer", strength, "validation accuracy", "validation loss, nats")
    return page.section(
        "What its layers know",
        page.paragraph(text),
        page.chart_figure(
            probe_chart(record),
            alt="Validation accuracy of a linear probe by layer",
            caption=f"Accuracy on {record['n_valid']:,} validation images by layer (the paper's "
            f"Figure 2). {_where_the_peak_is(record)}",
        ),
        page.folded(
            "The numbers behind it",
            page.table(columns, rows, numbers=(1, 2, 3), best=(layers.index(record["layer"]),)),
        ),
    )


def probe_chart(record: dict[str, Any]) -> Chart:
    """The paper's Figure 2: validation accuracy by layer, beside raw pixels."""
    scores = record["by_layer"]
    pixels = record.get("raw_pixels")
    return Chart(
        series=(
            Series(
                "features",
                [score["layer"] for score in scores],
                [score["valid_accuracy"] for score in scores],
                form="both",
            ),
        ),
        levels=(Level("raw pixels", pixels["valid_accuracy"]),) if pixels else (),
        x_label="layer (0: after the embedding)",
        y_label="validation accuracy",
        percent=True,
        whole_x=True,
    )


def _where_the_peak_is(record: dict[str, Any]) -> str:
    layers = [score["layer"] for score in record["by_layer"]]
    if layers[0] < record["layer"] < layers[-1]:
        return "As in the paper, the best features lie inside the network, not at its end."
    return "Unlike in the paper, the best features do not lie inside the network."


def _score_row(name: str, score: dict[str, Any]) -> tuple[str, ...]:
    accuracy, loss = score["valid_accuracy"], score["valid_loss_nats"]
    # Ridge regression and neighbours have no probabilities.
    nats = "" if loss is None else f"{loss:.4f}"
    return name, f"{score['strength']:g}", percent(accuracy), nats


def learning_section(
    config: RunConfig, metrics: list[dict[str, Any]], likelihood: dict[str, Any] | None
) -> str:
    train = [line for line in metrics if "loss_nats" in line]
    valid = [line for line in metrics if "valid_nats" in line]
    if not train:
        return ""
    images, losses = _thinned(train)
    series = [Series("training", images, losses)]
    if valid:
        seen = [line["images"] for line in valid]
        series.append(Series("validation", seen, [line["valid_nats"] for line in valid], "both"))
    levels: tuple[Level, ...] = ()
    if likelihood is not None and config.train.objective == "ar":
        levels = (
            Level("unigram", likelihood["unigram_nats_per_token"]),
            Level("bigram", likelihood["bigram_nats_per_token"]),
        )
    chart = Chart(
        series=tuple(series),
        levels=levels,
        x_label="images seen",
        y_label="nats per token",
        y_top=None if not levels else 1.08 * max(level.y for level in levels),
    )
    shown = [
        train[i] for i in np.unique(np.linspace(0, len(train) - 1, MAX_TABLE_ROWS).astype(int))
    ]
    rows = [_metric_row(line, "loss_nats", "training") for line in shown]
    rows += [_metric_row(line, "valid_nats", "validation") for line in valid]
    return page.section(
        "How it learned",
        page.chart_figure(
            chart,
            alt="Loss against images seen",
            caption="Loss against images seen; a blind guess costs ln\u00a0K\u00a0=\u00a0"
            f"{math.log(config.data.n_colors):.2f}\u00a0nats. The dashed lines are what counting "
            "colours, and pairs of neighbouring colours, comes to."
            if levels
            else "Loss against images seen.",
        ),
        page.folded(
            "The numbers behind it",
            page.table(
                ("step", "images", "loss of", "nats a token", "images/s"),
                rows,
                numbers=(0, 1, 3, 4),
            ),
        ),
    )


def watched_lines(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that `train.probe_every` wrote."""
    return [line for line in metrics if "probe_accuracy" in line]


def watched_section(metrics: list[dict[str, Any]]) -> str:
    lines = watched_lines(metrics)
    if not lines:
        return ""
    last = lines[-1]["probe_accuracy"]
    columns = ("step", "images", *(f"layer {layer}" for layer in range(len(last))))
    rows = [
        (f"{line['step']:,}", f"{line['images']:,}", *map(percent, line["probe_accuracy"]))
        for line in lines
    ]
    return page.section(
        "What its layers came to know",
        page.chart_figure(
            watched_chart(lines),
            alt="Accuracy of the best layer against images seen",
            caption="Accuracy on validation images of the best layer while it trained: a linear "
            "classifier on its features, and a vote of the nearest training images. Both know few "
            "labels, always the same ones, so they tell the way and not the height.",
        ),
        page.folded(
            "The numbers behind it, of the linear classifier",
            page.table(columns, rows, numbers=tuple(range(len(columns)))),
        ),
    )


def watched_chart(lines: list[dict[str, Any]]) -> Chart:
    """Accuracy of the best layer by images seen, of both probes made while training."""
    images = [line["images"] for line in lines]
    named = {"probe_accuracy": "linear", "knn_accuracy": "nearest neighbours"}
    return Chart(
        series=tuple(
            Series(label, images, [max(line[name]) for line in lines], "both")
            for name, label in named.items()
        ),
        x_label="images seen",
        y_label="validation accuracy",
        percent=True,
    )


def _thinned(lines: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Images and losses, averaged over stretches so that at most `MAX_CURVE_POINTS` are left."""
    images = np.array([line["images"] for line in lines], float)
    losses = np.array([line["loss_nats"] for line in lines], float)
    n_parts = min(len(lines), MAX_CURVE_POINTS)
    pairs = zip(np.array_split(images, n_parts), np.array_split(losses, n_parts), strict=True)
    means = [(float(x.mean()), float(y.mean())) for x, y in pairs]
    return [x for x, _ in means], [y for _, y in means]


def _metric_row(line: dict[str, Any], key: str, name: str) -> tuple[str, ...]:
    speed = line.get("images_per_s")
    return (
        f"{line['step']:,}",
        f"{line['images']:,}",
        name,
        f"{line[key]:.4f}",
        "" if speed is None else f"{speed:,.0f}",
    )


def palette_section(run_folder: Path) -> str:
    path = run_folder / "palette.npy"
    if not path.is_file():
        return ""
    levels = np.rint(127.5 * (Palette.load(path).colors + 1)).astype(int)  # (K, 3)
    order = _by_hue(levels)
    columns = 32
    n_rows = -(-len(levels) // columns)
    cells = np.full((n_rows * columns, 3), 255, np.uint8)
    # Down the columns, so that neighbours in hue stand side by side.
    cells[: len(levels)] = levels[order]
    grid = cells.reshape(columns, n_rows, 3).transpose(1, 0, 2)
    file = io.BytesIO()
    Image.fromarray(grid.repeat(24, axis=0).repeat(24, axis=1)).save(file, "PNG")
    names = ["#" + bytes(color).hex() for color in levels.tolist()]
    rows = [
        (str(start), " ".join(f"`{name}`" for name in names[start : start + 8]))
        for start in range(0, len(names), 8)
    ]
    return page.section(
        "Its colours",
        page.picture(
            file.getvalue(),
            alt=f"The {len(levels)} colours of the palette",
            caption=f"All {len(levels)} colours it knows, by hue and brightness: each pixel "
            "becomes the number of its nearest one, which is the token that the model predicts.",
        ),
        page.folded("The numbers behind it", page.table(("from", "colours in their order"), rows)),
    )


def _by_hue(levels: np.ndarray) -> np.ndarray:
    """Order of (K, 3) colours: greys by brightness first, then by hue, dark to light within."""
    high, low = levels.max(axis=1), levels.min(axis=1)
    spread = np.maximum(high - low, 1)
    r, g, b = levels.T
    hue = np.select(
        [high == r, high == g], [(g - b) / spread % 6, (b - r) / spread + 2], (r - g) / spread + 4
    )
    grey = (high - low) < 0.18 * np.maximum(high, 40)
    return np.lexsort((levels.sum(axis=1), np.where(grey, -1, np.floor(hue * 2.5))))
