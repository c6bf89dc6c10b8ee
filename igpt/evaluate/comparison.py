"""Our figures beside the paper's own: Tables 1, 3 and 4, Figures 3 and 4.

The paper's numbers are iGPT-L's (1.4 billion parameters, pre-trained on ImageNet) and those it was
compared with there; they are what scale gives, not what a small model is expected to reach.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from igpt.evaluate import page
from igpt.evaluate.charts import Chart, Series
from igpt.evaluate.page import percent
from igpt.evaluate.record import read_records
from igpt.train.tracking import read_metrics

# Accuracy in per cent. Paper, Table 1 (linear probes) and Table 3 (fine-tuned).
PROBE_IN_PAPER = {
    "cifar10": (("iGPT-L", 96.3), ("SimCLR", 95.3), ("ResNet-152", 94.0)),
    "cifar100": (("iGPT-L", 82.8), ("SimCLR", 80.2), ("ResNet-152", 78.0)),
    "stl10": (("iGPT-L", 95.5), ("AMDIM-L", 94.2)),
}
FINETUNE_IN_PAPER = {
    "cifar10": (("iGPT-L", 99.0), ("GPipe", 99.0), ("SimCLR", 98.6), ("AutoAugment", 98.5)),
    "cifar100": (
        ("EfficientNet", 91.7),
        ("AutoAugment", 89.3),
        ("SimCLR", 89.0),
        ("iGPT-L", 88.5),
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


def few_labels_section(record: dict[str, Any] | None) -> str:
    """Accuracy against labels a class, each method a line; in the form of the paper's Table 4."""
    if record is None:
        return ""
    rows = record["rows"]
    n_subsets = len(rows[0]["accuracies"])
    chart = few_labels_chart(rows)
    return page.section(
        "What a few labels can do",
        page.paragraph(
            f"Mean and standard deviation over {n_subsets} random subsets of the training images. "
            "Layer and strength are chosen by cross-validation inside each subset."
        ),
        page.chart_figure(
            chart,
            alt="Test accuracy against labels a class",
            caption=f"Accuracy on {rows[0]['n_test']:,} test images against labels a class.",
        ),
        page.folded("The numbers behind it", lowdata_table(rows)),
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


def lowdata_table(rows: Sequence[Mapping[str, Any]], *, with_paper: bool = False) -> str:
    """The paper's Table 4: methods down, labels a class across; ours first."""
    counts = sorted({row["labels_per_class"] for row in rows})
    cells = {
        (row["method"], row["labels_per_class"]): _mean_sd(100 * row["mean"], 100 * row["sd"])
        for row in rows
    }
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [(m, *(cells.get((m, count), "") for count in counts)) for m in methods]
    if with_paper:
        for method, values in LOWDATA_IN_PAPER.items():
            shown = (_mean_sd(*values[count]) if count in values else "" for count in counts)
            lines.append((f"{method} (paper)", *shown))
    head = ("method", *(f"{count} a class" for count in counts))
    return page.table(head, lines, numbers=range(1, len(head)))


def _mean_sd(mean: float, sd: float) -> str:
    return f"{mean:.1f} ± {sd:.1f}"


def paper_section(records: Mapping[str, dict[str, Any]], *, data: str) -> str:
    """Tables 1, 3 and 4 with ours in the first rows, as far as they were measured."""
    task = data.partition(" ")[0].lower().replace("-", "")  # "cifar10 (where it came from)"
    probe = (
        [(_ours("linear probe", records["probe"]), records["probe"])] if "probe" in records else []
    )
    tuned = [
        (_ours(finetune_name(record), record), record)
        for name, record in records.items()
        if name.startswith("finetune")
    ]
    parts = []
    for title, ours, theirs in (
        ("Linear probes (Table 1)", probe, PROBE_IN_PAPER.get(task)),
        ("Fine-tuned (Table 3)", tuned, FINETUNE_IN_PAPER.get(task)),
    ):
        if ours and theirs:
            rows = [(name, percent(record["test_accuracy"])) for name, record in ours]
            rows += [(f"{name} (paper)", f"{value:.1f} %") for name, value in theirs]
            parts.append(page.table((title, "test accuracy"), rows, numbers=(1,)))
    lowdata = records.get("lowdata")
    if lowdata is not None and task == "cifar10":
        parts.append(page.paragraph("Few labels (Table 4), test accuracy in per cent:"))
        parts.append(lowdata_table(lowdata["rows"], with_paper=True))
    if not parts:
        return ""
    note = (
        "What scale gives: the paper's iGPT-L has 1.4 billion parameters, sees 32 \u00d7 32 pixels "
        "and was pre-trained on ImageNet."
    )
    return page.section("Beside the paper", page.paragraph(note), *parts)


def _ours(name: str, record: Mapping[str, Any]) -> str:
    layer = record.get("layer")
    return f"ours, {name}" if layer is None else f"ours, {name} at layer {layer}"


def finetune_name(record: Mapping[str, Any]) -> str:
    losses = "both losses" if record["joint"] else "classification loss alone"
    return f"{losses}, from scratch" if record["scratch"] else losses


def loss_against_probe(runs: Mapping[str, Path]) -> Chart:
    """The paper's Figure 3: probe accuracy against validation loss, a line a run.

    Args:
        runs: name and folder of each; its records `probe-step-*` are the points, and the
            validation loss at the same steps comes from its metrics.
    """
    series = []
    for name, folder in runs.items():
        nats_at = {
            line["step"]: line["valid_nats"]
            for line in read_metrics(folder)
            if "valid_nats" in line
        }
        points = sorted(
            (nats_at[step], record["test_accuracy"])
            for step, record in _probes_by_step(folder).items()
            if step in nats_at
        )
        series.append(Series(name, [x for x, _ in points], [y for _, y in points], "both"))
    return Chart(
        series=tuple(series),
        x_label="validation loss, nats per token",
        y_label="probe accuracy",
        percent=True,
    )


def _probes_by_step(folder: Path) -> dict[int, dict[str, Any]]:
    prefix = "probe-step-"
    return {
        int(name.removeprefix(prefix)): record
        for name, record in read_records(folder).items()
        if name.startswith(prefix)
    }


def objectives_compared(runs: Mapping[str, Path]) -> Chart:
    """The paper's Figure 4: test accuracy by probe and by fine-tuning, a series a run.

    Args:
        runs: name ("autoregressive", "BERT") and folder of each; what a run has not measured is
            left out.
    """
    series = []
    for name, folder in runs.items():
        records = read_records(folder)
        points = [
            (place, records[key]["test_accuracy"])
            for place, key in enumerate(("probe", "finetune"))
            if key in records
        ]
        series.append(Series(name, [x for x, _ in points], [y for _, y in points], "dots"))
    return Chart(
        series=tuple(series),
        x_label="",
        y_label="test accuracy",
        percent=True,
        x_names=("linear probe", "fine-tuned"),
    )


def layers_compared(runs: Mapping[str, Path]) -> Chart:
    """The paper's Figure 2 for several runs: validation accuracy by depth, from 0 to 1."""
    series = []
    for name, folder in runs.items():
        scores = read_records(folder).get("probe", {}).get("by_layer", [])
        last = max((score["layer"] for score in scores), default=1)
        series.append(
            Series(
                name,
                [score["layer"] / last for score in scores],
                [score["valid_accuracy"] for score in scores],
                "both",
            )
        )
    return Chart(
        series=tuple(series),
        x_label="depth (layer / last layer)",
        y_label="validation accuracy",
        percent=True,
    )
