"""`report.html`: one file that tells what a run learned, with every number's table and command."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from igpt import files
from igpt.config import RunConfig
from igpt.model.sizes import Shape, parameter_count
from igpt.published import published, shown, shown_command
from igpt.report import comparison, page
from igpt.report.charts import Chart, Level, Series, save_chart
from igpt.report.page import percent, save_sheet
from igpt.report.record import read_records
from igpt.tokens.palette import Palette
from igpt.train.folder import read_metrics, read_run

OWN_NAME = "this run"


def write_report(
    run_folder: Path, *, name: str = OWN_NAME, beside: comparison.Runs | None = None
) -> Path:
    """Write `report.html` into a run folder; what the run does not hold is left out.

    Its charts and tables are written to `figures/` too, each as SVG, PNG and JSON.

    Args:
        run_folder: with config.json and, as far as made: metrics.jsonl, palette.npy, pictures/*.png
            and evaluations/*.json.
        name: of this run beside others.
        beside: other runs to set it beside in Figures 2, 3 and 4.

    Returns:
        The path of the report.

    Raises:
        UserError: there is no run, or a file of it is damaged.
    """
    config, recorded = read_run(run_folder)
    facts = published(recorded)
    records = {
        name: {**record, "command": shown_command(str(record.get("command") or ""))}
        for name, record in read_records(run_folder).items()
    }
    metrics = read_metrics(run_folder)
    compared = comparison.compared_charts(_named(run_folder, name, beside or {}))
    if not beside:  # one run alone has its Figure 2 already, and nothing to stand beside in 4
        compared = {key: chart for key, chart in compared.items() if key == "figure-3"}
    data = str(facts.get("data"))
    sheets = comparison.paper_tables(records, task=_task(data), pretrained_on=_seen(data))
    parts = [
        _head(config, facts, metrics, records),
        samples_section(run_folder, records.get("samples", {})),
        completions_section(run_folder, records.get("completions", {})),
        probe_section(records.get("probe")),
        learning_section(config, metrics, _likelihood(records)),
        watched_section(metrics),
        palette_section(run_folder),
        comparison.few_labels_section(records.get("lowdata")),
        comparison.compared_section(compared),
        comparison.paper_section(sheets),
        _numbers(config, records),
        _run(config, facts, shown_command(str(recorded.get("command", "")))),
        "<footer>Made by igpt from the files of this run. After Chen et al., “Generative "
        "Pretraining from Pixels”, ICML 2020.</footer>",
    ]
    path = run_folder / "report.html"
    files.write_bytes(path, page.document("What the pixels taught it", parts).encode())
    charts = _own_charts(records, metrics) | compared
    for chart_name, chart in charts.items():
        save_chart(run_folder / "figures", chart_name, chart)
    for sheet in sheets:
        save_sheet(run_folder / "figures", sheet)
    return path


def _named(run_folder: Path, name: str, beside: comparison.Runs) -> dict[str, list[Path]]:
    """This run first, then those beside it; one of the same name is another seed of it."""
    named = {name: [run_folder]}
    for other, folders in beside.items():
        named.setdefault(other, []).extend(folders)
    return named


def _task(data: str) -> str:
    """The paper's name of a data set: "cifar10 (where it came from)" is `cifar10`."""
    return data.partition(" ")[0].lower().replace("-", "")


def _seen(data: str) -> str:
    return f"{data.partition(' ')[0]}, no labels"


def _own_charts(
    records: dict[str, dict[str, Any]], metrics: list[dict[str, Any]]
) -> dict[str, Chart]:
    charts = {}
    if watched := watched_lines(metrics):
        charts["probe-while-training"] = watched_chart(watched)
    if "probe" in records:
        charts["figure-2"] = probe_chart(records["probe"])
    if "lowdata" in records:
        charts["few-labels"] = comparison.few_labels_chart(records["lowdata"]["rows"])
    return charts


def _likelihood(records: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The likelihood record nearest to the test split."""
    for split in ("test", "valid", "train"):
        if record := records.get(f"likelihood-{split}"):
            return record
    return None


def _head(
    config: RunConfig,
    facts: dict[str, Any],
    metrics: list[dict[str, Any]],
    records: dict[str, dict[str, Any]],
) -> str:
    shape = Shape.of_run(config, 256 if config.data.tokens == "raw" else config.data.n_colors)
    parameters = parameter_count(config.model, shape)
    seen = max((line["images"] for line in metrics if "images" in line), default=0)
    task = (
        "predict each pixel from those before it"
        if config.train.objective == "ar"
        else "fill in pixels that were hidden"
    )
    side = config.data.image_size
    text = (
        f"A Transformer of {config.model.n_layer} blocks, {config.model.n_embd} wide "
        f"({_short(parameters)} parameters), looked at {seen:,} pictures of "
        f"{side} \u00d7 {side} pixels from {facts.get('data', 'a data set')} "
        f"and learned one thing only: to {task}. "
        "Nobody told it what is on them."
    )
    return (
        "<header><h1>What the pixels taught it</h1>"
        + page.paragraph(text, lead=True)
        + page.tiles(_tiles(records))
        + "</header>"
    )


def _tiles(records: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    tiles = []
    if probe := records.get("probe"):
        what = f"test images classified right from the features of layer {probe['layer']}"
        tiles.append((percent(probe["test_accuracy"]), what))
        if pixels := probe.get("raw_pixels"):
            tiles.append((percent(pixels["test_accuracy"]), "the same from raw pixels"))
    if likelihood := _likelihood(records):
        nats = likelihood["nats_per_token"]
        tiles.append(
            (f"{nats:.3f}", f"nats a token on {likelihood['split']}, first pixel included")
        )
        bigram = likelihood["bigram_nats_per_token"]
        tiles.append((f"{bigram:.3f}", "nats a token by counting pairs of neighbours"))
    return tiles


def _numbers(config: RunConfig, records: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, record in records.items():
        if name.startswith("likelihood-"):
            rows += _likelihood_rows(record)
        elif name == "probe":
            rows += _probe_rows(record)
        elif name.startswith("finetune"):
            what = f"fine-tuned, {comparison.finetune_name(record)}"
            rows.append(_test_row(what, record, record.get("command", "")))
    if not rows:
        return ""
    columns = ("what", "value", "±", "split", "images", "made by")
    return page.section(
        "The numbers",
        page.table(columns, rows, numbers=(1, 2, 4)),
        page.paragraph(
            f"± is the standard error over the images of the split, or where a row names several "
            f"seeds their standard deviation; one pre-training run, seed {config.seed}. "
            "Losses under different palettes cannot be compared."
        ),
    )


def _likelihood_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    about = (record["split"], f"{record['n_images']:,}", f"`{record.get('command', '')}`")
    spread = f"{record['nats_per_token_se']:.4f}"
    rows: list[tuple[str, ...]] = [
        ("nats per token", f"{record['nats_per_token']:.4f}", spread, *about)
    ]
    for key, name in (
        ("bits_per_pixel", "bits per pixel, in this palette"),
        ("bits_per_dim", "bits per dimension"),
        ("unigram_nats_per_token", "unigram, nats per token"),
        ("bigram_nats_per_token", "bigram, nats per token"),
        ("gzip_nats_per_token", "gzip, nats per token"),
    ):
        if record.get(key) is not None:
            rows.append((name, f"{record[key]:.4f}", "", *about[:2], ""))
    return rows


def _probe_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    what = f"linear probe, layer {record['layer']}"
    rows = [_test_row(what, record, record.get("command", ""))]
    if bands := record.get("bands"):
        rows.append(_test_row(f"the same from bands of rows, layer {bands['layer']}", bands, ""))
    if pixels := record.get("raw_pixels"):
        rows.append(_test_row("logistic regression on raw pixels", pixels, ""))
    return rows


def _test_row(what: str, result: dict[str, Any], command: str) -> tuple[str, ...]:
    value = percent(result["test_accuracy"])
    spread = f"{100 * comparison.spread_of(result):.2f}"
    return what, value, spread, "test", f"{result['n_test']:,}", f"`{command}`" if command else ""


def _run(config: RunConfig, facts: dict[str, Any], made_by: str) -> str:
    rows = [(key, f"`{value}`") for key, value in facts.items()]
    rows.append(("seed", str(config.seed)))
    for room in ("data", "model", "train"):
        for key, value in config.to_dict()[room].items():
            rows.append((f"{room}.{key}", f"`{shown(str(value))}`"))
    command = page.table(("", ""), [("command", f"`{made_by}`")])
    return page.section(
        "The run", command, page.folded("Every setting", page.table(("setting", "value"), rows))
    )


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


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
