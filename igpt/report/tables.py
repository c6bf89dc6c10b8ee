"""Tables 1, 3 and 4 of the paper with our figures in the first rows.

The paper's numbers are iGPT-L's (1.4 billion parameters, pre-trained on ImageNet) and those it was
compared with there; they are what scale gives, not what a small model is expected to reach.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from igpt.report import page
from igpt.report.page import Sheet

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
            _mean_sd(100 * record["test_accuracy"], spread),
            pretrained_on,
        )
    ]
    if bands := record.get("bands"):
        accuracy = _mean_sd(100 * bands["test_accuracy"], 100 * bands["test_accuracy_se"])
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
            accuracy = _mean_sd(100 * record["test_accuracy"], 100 * spread_of(record))
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
    return Sheet(
        name="table-4",
        title="Few labels (the paper's Table 4), test accuracy in per cent",
        head=head,
        rows=tuple(lines),
        numbers=tuple(range(1, len(head))),
        n_ours=len(methods),
    )


def _mean_sd(mean: float, sd: float) -> str:
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
