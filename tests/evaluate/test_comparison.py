"""Our figures beside the paper's: the right numbers in the right places, and nothing invented."""

import json
from pathlib import Path
from typing import Any

import pytest

from igpt.evaluate.charts import save_chart
from igpt.evaluate.comparison import (
    few_labels_section,
    layers_compared,
    loss_against_probe,
    lowdata_table,
    objectives_compared,
    paper_section,
)
from igpt.evaluate.record import write_record

ABOUT = {"model": "a", "data": "cifar10", "split": "test"}


def few(method: str, labels: int, mean: float) -> dict[str, Any]:
    return {
        "method": method,
        "labels_per_class": labels,
        "accuracies": [mean] * 5,
        "mean": mean,
        "sd": 0.012,
        "n_test": 10000,
    }


def probe(accuracy: float) -> dict[str, Any]:
    scores = [{"layer": i, "valid_accuracy": a} for i, a in enumerate([0.3, accuracy, 0.35])]
    return {"layer": 1, "by_layer": scores, "test_accuracy": accuracy}


def test_few_labels_stand_in_the_papers_form() -> None:
    rows = [few("features", 25, 0.29), few("features", 4, 0.22), few("raw pixels", 4, 0.17)]
    section = few_labels_section({"rows": rows})
    assert "over 5 random subsets" in section
    table = lowdata_table(rows, with_paper=True)
    assert table.index(">4 a class<") < table.index(">25 a class<")
    assert "22.0 ± 1.2" in table
    assert "73.2 ± 1.5" in table  # iGPT-L at 4 labels
    assert "94.3" not in table  # 400 labels were not measured here
    assert few_labels_section(None) == ""


def test_paper_stands_beside_what_was_measured_on_the_same_set() -> None:
    tuned = {"joint": False, "scratch": True, "layer": None, "test_accuracy": 0.51}
    records = {"probe": probe(0.44), "finetune-clf-scratch": tuned}
    section = paper_section(records, data="cifar10 (official archive)")
    for text in ("44.0 %", "96.3 %", "51.0 %", "99.0 %", "classification loss alone, from scratch"):
        assert text in section
    assert "Few labels" not in section
    assert paper_section(records, data="my pictures") == ""
    assert paper_section({}, data="cifar10") == ""


def test_loss_against_probe_joins_probes_and_metrics_by_step(tmp_path: Path) -> None:
    lines = [{"step": 10, "valid_nats": 4.0}, {"step": 20, "valid_nats": 3.5}, {"step": 30}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for step, accuracy in ((10, 0.3), (20, 0.4), (30, 0.5)):
        write_record(tmp_path, f"probe-step-{step:07}", probe(accuracy), **ABOUT)
    (series,) = loss_against_probe({"small": tmp_path}).series
    assert (series.x, series.y) == ([3.5, 4.0], [0.4, 0.3])


def test_objectives_and_layers_of_two_runs_are_drawn_together(tmp_path: Path) -> None:
    for name, accuracy in (("ar", 0.44), ("bert", 0.4)):
        write_record(tmp_path / name, "probe", probe(accuracy), **ABOUT)
    write_record(tmp_path / "ar", "finetune", {"test_accuracy": 0.6}, **ABOUT)
    runs = {"autoregressive": tmp_path / "ar", "BERT": tmp_path / "bert"}
    one, other = objectives_compared(runs).series
    assert (one.x, one.y) == ([0, 1], [0.44, 0.6])
    assert (other.x, other.y) == ([0], [0.4])
    assert layers_compared(runs).series[0].x == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["figure-2", "figure-4"])
def test_charts_are_saved_in_three_forms(tmp_path: Path, name: str) -> None:
    write_record(tmp_path / "ar", "probe", probe(0.44), **ABOUT)
    make = layers_compared if name == "figure-2" else objectives_compared
    save_chart(tmp_path, name, make({"autoregressive": tmp_path / "ar"}))
    assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / f"{name}.json").read_text())
    assert 0.44 in numbers["series"]["autoregressive"]["y"]
