"""Several runs in one figure: the paper's Figures 2, 3 and 4, and few labels by method.

`Runs` names models; the folders under one name are the same model trained with several seeds, and
stand in a figure as their mean with its standard deviation.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from igpt.report import page
from igpt.report.charts import Chart, Series
from igpt.report.record import read_records
from igpt.report.tables import lowdata_sheet
from igpt.train.folder import read_metrics, read_run

Runs = Mapping[str, Sequence[Path]]


def few_labels_section(record: dict[str, Any] | None) -> str:
    """Accuracy against labels a class, each method a line."""
    if record is None:
        return ""
    rows = record["rows"]
    n_subsets = len(rows[0]["accuracies"])
    return page.section(
        "What a few labels can do",
        page.paragraph(
            f"Mean and standard deviation over {n_subsets} random subsets of the training images. "
            "Layer and strength are chosen by cross-validation inside each subset."
        ),
        page.chart_figure(
            few_labels_chart(rows),
            alt="Test accuracy against labels a class",
            caption=f"Accuracy on {rows[0]['n_test']:,} test images against labels a class.",
        ),
        page.folded("The numbers behind it", lowdata_sheet(rows, with_paper=False).html()),
    )


def few_labels_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Test accuracy against labels a class, one line a method."""
    methods = dict.fromkeys(row["method"] for row in rows)
    series = []
    for method in methods:
        own = sorted(
            (row for row in rows if row["method"] == method), key=lambda r: r["labels_per_class"]
        )
        series.append(
            Series(
                method,
                [row["labels_per_class"] for row in own],
                [row["mean"] for row in own],
                "both",
                error=[row["sd"] for row in own],
            )
        )
    return Chart(
        series=tuple(series),
        x_label="labels a class",
        y_label="test accuracy",
        percent=True,
        log_x=True,
    )


def loss_against_probe(runs: Runs) -> Chart:
    """The paper's Figure 3: probe accuracy against validation loss, a line a model.

    Only losses of the same kind can be compared: runs of another objective or palette than the
    first one's are left out.

    Args:
        runs: their records `probe-step-*` are the points, and the validation loss at the same
            steps comes from their metrics.
    """
    series = []
    kinds = [_kind(folder) for folders in runs.values() for folder in folders]
    for name, folders in runs.items():
        points: dict[int, list[tuple[float, float]]] = {}
        for folder in (f for f in folders if _kind(f) == kinds[0]):
            for step, point in _points(folder).items():
                points.setdefault(step, []).append(point)
        if points:
            series.append(_means(name, points.values()))
    return Chart(
        series=tuple(series),
        x_label="validation loss, nats per token",
        y_label="probe accuracy",
        percent=True,
    )


def _kind(folder: Path) -> tuple[object, ...]:
    config, facts = read_run(folder)
    return config.train.objective, config.data.image_size, facts.get("palette_digest")


def _points(folder: Path) -> dict[int, tuple[float, float]]:
    """Validation loss and probe accuracy by step, where both are known."""
    nats_at = {
        line["step"]: line["valid_nats"] for line in read_metrics(folder) if "valid_nats" in line
    }
    prefix = "probe-step-"
    return {
        step: (nats_at[step], record["test_accuracy"])
        for name, record in read_records(folder).items()
        if name.startswith(prefix) and (step := int(name.removeprefix(prefix))) in nats_at
    }


def _means(name: str, points: Iterable[Sequence[tuple[float, float]]]) -> Series:
    """A line through the mean of each set of (x, y), by x."""
    means = sorted(
        (statistics.mean(x for x, _ in some), *_mean_sd([y for _, y in some])) for some in points
    )
    xs, ys, errors = ([mean[i] for mean in means] for i in range(3))
    return Series(name, xs, ys, "both", error=errors if any(errors) else None)


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def objectives_compared(runs: Runs) -> Chart:
    """The paper's Figure 4: test accuracy by probe and by fine-tuning, a series a model.

    Args:
        runs: such as "autoregressive" and "BERT"; what a run has not measured is left out.
    """
    series = []
    for name, folders in runs.items():
        records = [read_records(folder) for folder in folders]
        points = []
        for place, key in enumerate(("probe", "finetune")):
            if accuracies := [r[key]["test_accuracy"] for r in records if key in r]:
                points.append((place, *_mean_sd(accuracies)))
        if points:
            xs, ys, errors = ([point[i] for point in points] for i in range(3))
            series.append(Series(name, xs, ys, "dots", error=errors if any(errors) else None))
    return Chart(
        series=tuple(series),
        x_label="",
        y_label="test accuracy",
        percent=True,
        x_names=("linear probe", "fine-tuned"),
    )


def layers_compared(runs: Runs) -> Chart:
    """The paper's Figure 2 for several models: validation accuracy by depth, from 0 to 1."""
    series = []
    for name, folders in runs.items():
        points: dict[float, list[tuple[float, float]]] = {}
        for folder in folders:
            scores = read_records(folder).get("probe", {}).get("by_layer", [])
            last = max((score["layer"] for score in scores), default=1) or 1
            for score in scores:
                depth = score["layer"] / last
                points.setdefault(depth, []).append((depth, score["valid_accuracy"]))
        if points:
            series.append(_means(name, points.values()))
    return Chart(
        series=tuple(series),
        x_label="depth (layer / last layer)",
        y_label="validation accuracy",
        percent=True,
    )


def compared_charts(runs: Runs) -> dict[str, Chart]:
    """Figures 2, 3 and 4 of several models by the name of their files, as far as measured."""
    charts = {
        "figure-2-compared": layers_compared(runs),
        "figure-3": loss_against_probe(runs),
        "figure-4": objectives_compared(runs),
    }
    return {name: chart for name, chart in charts.items() if chart.series}


CAPTIONS = {
    "figure-2-compared": "Probe accuracy on validation by depth (the paper's Figure 2, for each "
    "model).",
    "figure-3": "Probe accuracy on test against validation loss, each point a checkpoint (the "
    "paper's Figure 3; there S, M and L end at 2.09, 2.06 and 2.05 nats under another palette, "
    "whose losses cannot be compared with these).",
    "figure-4": "Test accuracy by linear probe and fine-tuned (the paper's Figure 4; there, on "
    "CIFAR-10: autoregressive 96.3 and 99.0 %, BERT below 95.3 and 98.6 %).",
}


def compared_section(charts: Mapping[str, Chart]) -> str:
    """The figures on the page, each with the numbers behind it."""
    if not charts:
        return ""
    parts = [
        page.paragraph("Where a model was trained with several seeds: mean and standard deviation.")
    ]
    for name, chart in charts.items():
        parts += [
            page.chart_figure(chart, alt=CAPTIONS[name].partition(" (")[0], caption=CAPTIONS[name]),
            page.folded("The numbers behind it", chart_table(chart)),
        ]
    return page.section("Beside other models", *parts)


def chart_table(chart: Chart) -> str:
    """A chart's numbers, one row a point."""
    rows = []
    for series in chart.series:
        errors = series.error or [0.0] * len(series.x)
        for x, y, error in zip(series.x, series.y, errors, strict=True):
            shown = chart.x_names[int(x)] if chart.x_names else f"{x:.4g}"
            rows.append((series.label, shown, f"{100 * y:.1f} %", f"{100 * error:.1f}"))
    head = ("model", chart.x_label or "judged by", chart.y_label, "\u00b1")
    return page.table(head, rows, numbers=(2, 3) if chart.x_names else (1, 2, 3))
