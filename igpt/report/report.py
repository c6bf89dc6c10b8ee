"""`report.html`: one file that tells what a run learned, with every number's table and command."""

from pathlib import Path
from typing import Any

from igpt import files
from igpt.config import RunConfig
from igpt.model.sizes import Shape, parameter_count
from igpt.published import published, shown, shown_command
from igpt.report import comparison, page, sections, tables
from igpt.report.charts import Chart, save_chart
from igpt.report.page import percent, save_sheet
from igpt.report.record import read_records
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
    sheets = tables.paper_tables(records, task=_task(data), pretrained_on=_seen(data))
    parts = [
        _head(config, facts, metrics, records),
        sections.samples_section(run_folder, records.get("samples", {})),
        sections.completions_section(run_folder, records.get("completions", {})),
        sections.probe_section(records.get("probe")),
        sections.learning_section(config, metrics, _likelihood(records)),
        sections.watched_section(metrics),
        sections.palette_section(run_folder),
        comparison.few_labels_section(records.get("lowdata")),
        comparison.compared_section(compared),
        tables.paper_section(sheets),
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
    if watched := sections.watched_lines(metrics):
        charts["probe-while-training"] = sections.watched_chart(watched)
    if "probe" in records:
        charts["figure-2"] = sections.probe_chart(records["probe"])
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
            what = f"fine-tuned, {tables.finetune_name(record)}"
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
    spread = f"{100 * tables.spread_of(result):.2f}"
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
