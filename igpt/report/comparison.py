"""Runs beside each other and the paper: its Figures 2, 3 and 4, few labels by method, its tables.

`Runs` names models; the folders under one name are the same model trained with several seeds, and
stand in a figure as their mean with its standard deviation. Tables 1, 3 and 4 have our figures in
their first rows; the paper's numbers there are iGPT-L's (1.4 billion parameters, pre-trained on
ImageNet) and those it was compared with: they are what scale gives, not what a small model is
expected to reach.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from igpt.report import page
from igpt.report.charts import Chart, Form, Series
from igpt.report.page import Sheet
from igpt.report.record import read_records
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
    means = [
        (statistics.mean(x for x, _ in some), *_mean_sd([y for _, y in some])) for some in points
    ]
    return _series(name, sorted(means, key=itemgetter(0)), "both")


def _series(name: str, points: Sequence[tuple[float, float, float | None]], form: Form) -> Series:
    """Of (x, y, error); no error where none of them has one."""
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    errors = [error for _, _, error in points]
    known = any(error is not None for error in errors)
    return Series(name, xs, ys, form, error=errors if known else None)


def _mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation of several values: one alone has none."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


# Figure 4 from left to right: what a model is judged by, and where a run's records have it.
JUDGED_BY = {
    "linear probe": ("probe",),
    "vote of masks": ("probe", "vote"),
    "fine-tuned": ("finetune",),
    "fine-tuned,\nclass loss alone": ("finetune-clf",),
}


def objectives_compared(runs: Runs) -> Chart:
    """The paper's Figure 4: test accuracy by probe and by fine-tuning, a series a model.

    Args:
        runs: such as "autoregressive" and "BERT"; what none of them has measured has no place.
    """
    records = {name: [read_records(folder) for folder in folders] for name, folders in runs.items()}
    measured = {
        text: {name: _accuracies(held, place) for name, held in records.items()}
        for text, place in JUDGED_BY.items()
    }
    shown = {text: found for text, found in measured.items() if any(found.values())}
    series = []
    for name in runs:
        points = [
            (x, *_mean_sd(found[name])) for x, found in enumerate(shown.values()) if found[name]
        ]
        if points:
            series.append(_series(name, points, "dots"))
    return Chart(
        series=tuple(series),
        x_label="",
        y_label="test accuracy",
        percent=True,
        x_names=tuple(shown),
    )


def _accuracies(records: Iterable[Mapping[str, Any]], place: Sequence[str]) -> list[float]:
    """Test accuracy at this place of each run's records, of those that have it."""
    found = []
    for held in records:
        for key in place:
            held = held.get(key) or {}
        if held:
            found.append(held["test_accuracy"])
    return found


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
        errors = series.error or [None] * len(series.x)
        for x, y, error in zip(series.x, series.y, errors, strict=True):
            shown = chart.x_names[int(x)] if chart.x_names else f"{x:.4g}"
            spread = "-" if error is None else f"{100 * error:.1f}"
            rows.append((series.label, shown, f"{100 * y:.1f} %", spread))
    head = ("model", chart.x_label or "judged by", chart.y_label, "\u00b1")
    return page.table(head, rows, numbers=(2, 3) if chart.x_names else (1, 2, 3))


# Accuracy in per cent, and what was seen before. Paper, Table 1 (linear probes).
UNLABELLED, LABELLED, NOTHING = "ImageNet, no labels", "ImageNet, labels", "nothing"
IN_BANDS = "pooled in bands"
Others = Sequence[tuple[str, float, str]]
PROBE_IN_PAPER: dict[str, Others] = {
    "cifar10": (
        ("ResNet-152", 94.0, LABELLED),
        ("SimCLR", 95.3, UNLABELLED),
        ("iGPT-L 32 \u00d7 32", 96.3, UNLABELLED),
    ),
    "cifar100": (
        ("ResNet-152", 78.0, LABELLED),
        ("SimCLR", 80.2, UNLABELLED),
        ("iGPT-L 32 \u00d7 32", 82.8, UNLABELLED),
    ),
    "stl10": (
        ("AMDIM-L", 94.2, "no labels"),
        ("iGPT-L 32 \u00d7 32", 95.5, UNLABELLED),
    ),
}
# Paper, Table 3 (fine-tuned).
FINETUNE_IN_PAPER: dict[str, Others] = {
    "cifar10": (
        ("AutoAugment", 98.5, NOTHING),
        ("SimCLR", 98.6, UNLABELLED),
        ("GPipe", 99.0, LABELLED),
        ("iGPT-L", 99.0, UNLABELLED),
    ),
    "cifar100": (
        ("iGPT-L", 88.5, UNLABELLED),
        ("SimCLR", 89.0, UNLABELLED),
        ("AutoAugment", 89.3, NOTHING),
        ("EfficientNet", 91.7, LABELLED),
    ),
}
# Paper, Table 4: CIFAR-10, mean and standard deviation at 4, 25 and 400 labels a class.
LOWDATA_IN_PAPER: dict[str, dict[int, tuple[float, float]]] = {
    "Improved GAN": {400: (81.4, 2.3)},
    "Mean Teacher": {25: (67.7, 2.3), 400: (90.8, 0.2)},
    "MixMatch": {4: (52.5, 11.5), 25: (89.0, 0.9), 400: (93.6, 0.1)},
    "iGPT-L": {4: (73.2, 1.5), 25: (87.6, 0.6), 400: (94.3, 0.1)},
    "UDA": {4: (71.0, 5.9), 25: (91.2, 1.1), 400: (95.1, 0.2)},
    "FixMatch RA": {4: (86.2, 3.4), 25: (94.9, 0.7), 400: (95.7, 0.1)},
    "FixMatch CTA": {4: (88.6, 3.4), 25: (94.9, 0.3), 400: (95.7, 0.2)},
}


def paper_tables(
    records: Mapping[str, dict[str, Any]], *, task: str, pretrained_on: str
) -> list[Sheet]:
    """The tables whose task was measured here.

    Args:
        records: of a run, by name.
        task: the paper's name of the data set, such as `cifar10`.
        pretrained_on: what our model saw before, in words.
    """
    sheets = []
    if ours := _probes(records, pretrained_on):
        sheets.append(_against_paper("table-1", "Linear probes", ours, PROBE_IN_PAPER.get(task)))
    if ours := _finetuned(records, pretrained_on):
        sheets.append(_against_paper("table-3", "Fine-tuned", ours, FINETUNE_IN_PAPER.get(task)))
    if "lowdata" in records and task == "cifar10":
        sheets.append(lowdata_sheet(records["lowdata"]["rows"]))
    return [sheet for sheet in sheets if sheet is not None]


def _against_paper(
    name: str, title: str, ours: list[tuple[str, ...]], theirs: Others | None
) -> Sheet | None:
    if not theirs:
        return None
    rows = [(f"{model} (paper)", f"{value:.1f}", seen) for model, value, seen in theirs]
    return Sheet(
        name=name,
        title=f"{title} (the paper's Table {name[-1]}), test accuracy in per cent",
        head=("model", "accuracy", "seen before"),
        rows=(*ours, *rows),
        numbers=(1,),
        n_ours=len(ours),
    )


def _probes(records: Mapping[str, dict[str, Any]], pretrained_on: str) -> list[tuple[str, ...]]:
    if "probe" not in records:
        return []
    record = records["probe"]
    spread = 100 * record.get("test_accuracy_se", 0.0)
    how = f"ours{', ' + IN_BANDS if record.get('pooling') == 'bands' else ''}"
    rows: list[tuple[str, ...]] = [
        (
            f"{how}, layer {record['layer']}",
            _percent_sd(100 * record["test_accuracy"], spread),
            pretrained_on,
        )
    ]
    if bands := record.get("bands"):
        accuracy = _percent_sd(100 * bands["test_accuracy"], 100 * bands["test_accuracy_se"])
        rows.append((f"ours, {IN_BANDS}, layer {bands['layer']}", accuracy, pretrained_on))
    if joined := record.get("joined"):
        layers = f"{joined['layers'][0]} to {joined['layers'][-1]}"
        accuracy = f"{100 * joined['test_accuracy']:.1f}"
        rows.append((f"{how}, layers {layers} joined", accuracy, pretrained_on))
    if vote := record.get("vote"):
        accuracy = f"{100 * vote['test_accuracy']:.1f}"
        rows.append((f"{how}, vote of {vote['n_masks']} masks", accuracy, pretrained_on))
    if pixels := record.get("raw_pixels"):
        rows.append(("raw pixels", f"{100 * pixels['test_accuracy']:.1f}", NOTHING))
    return rows


def _finetuned(records: Mapping[str, dict[str, Any]], pretrained_on: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, record in sorted(records.items()):
        if name.startswith("finetune"):
            accuracy = _percent_sd(100 * record["test_accuracy"], 100 * spread_of(record))
            seen = NOTHING if record["scratch"] else pretrained_on
            rows.append((f"ours, {finetune_name(record)}", accuracy, seen))
    return rows


def spread_of(record: Mapping[str, Any]) -> float:
    """The standard deviation over seeds where there are several, else over the test images."""
    over_seeds = record.get("test_accuracy_sd")
    return float(record.get("test_accuracy_se", 0.0) if over_seeds is None else over_seeds)


def finetune_name(record: Mapping[str, Any]) -> str:
    """What sets a fine-tuning apart, in words."""
    words = ["both losses" if record["joint"] else "classification loss alone"]
    if record["scratch"]:
        words.append("from scratch")
    if record.get("layer") is not None:
        words.append(f"head at layer {record['layer']}")
    if n_seeds := len(record.get("test_accuracies", ())[1:]):
        words.append(f"{n_seeds + 1} seeds")
    return ", ".join(words)


def lowdata_sheet(rows: Sequence[Mapping[str, Any]], *, with_paper: bool = True) -> Sheet:
    """The paper's Table 4: methods down, labels a class across; ours first."""
    counts = sorted({row["labels_per_class"] for row in rows})
    cells = {
        (row["method"], row["labels_per_class"]): _percent_sd(100 * row["mean"], 100 * row["sd"])
        for row in rows
    }
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [(m, *(cells.get((m, count), "") for count in counts)) for m in methods]
    if with_paper:
        for method, values in LOWDATA_IN_PAPER.items():
            shown = (_percent_sd(*values[count]) if count in values else "" for count in counts)
            lines.append((f"{method} (paper)", *shown))
    head = ("method", *(f"{count} a class" for count in counts))
    return Sheet(
        name="table-4",
        title="Few labels (the paper's Table 4), test accuracy in per cent",
        head=head,
        rows=tuple(lines),
        numbers=tuple(range(1, len(head))),
        n_ours=len(methods),
    )


def _percent_sd(mean: float, sd: float) -> str:
    return f"{mean:.1f} ± {sd:.1f}" if sd else f"{mean:.1f}"


def paper_section(sheets: Sequence[Sheet]) -> str:
    """The tables on the page, with what must be known to read them."""
    if not sheets:
        return ""
    note = (
        "What scale gives: the paper's iGPT-L has 1.4 billion parameters, sees 32 \u00d7 32 pixels "
        "and was pre-trained on ImageNet. \u00b1 is the standard deviation over seeds or subsets "
        "where there are several, else the standard error over the test images."
    )
    parts = []
    for sheet in sheets:
        parts += [page.paragraph(f"{sheet.title}:"), sheet.html()]
    return page.section("Beside the paper", page.paragraph(note), *parts)
