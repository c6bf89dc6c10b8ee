"""Our figures beside the paper's: the right numbers in the right places, and nothing invented."""

import json
from pathlib import Path
from typing import Any

import pytest

from igpt.report.charts import save_chart
from igpt.report.comparison import (
    chart_table,
    compared_charts,
    few_labels_section,
    layers_compared,
    loss_against_probe,
    lowdata_sheet,
    objectives_compared,
    paper_section,
    paper_tables,
)
from igpt.report.page import save_sheet
from igpt.report.record import write_record
from tests.report.test_report import a_run

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
    table = lowdata_sheet(rows).html()
    assert table.index(">4 a class<") < table.index(">25 a class<")
    assert "22.0 ± 1.2" in table
    assert "73.2 ± 1.5" in table  # iGPT-L at 4 labels
    assert "94.3" not in table  # 400 labels were not measured here
    assert few_labels_section(None) == ""


def test_paper_stands_beside_what_was_measured_on_the_same_set(tmp_path: Path) -> None:
    tuned = {"joint": False, "scratch": True, "layer": None, "test_accuracy": 0.51}
    seeds = {"test_accuracies": [0.5, 0.52], "test_accuracy_sd": 0.0141}
    joined = {"layers": [0, 1], "test_accuracy": 0.45}
    vote = {"n_masks": 5, "test_accuracy": 0.443}
    records = {
        "probe": {**probe(0.44), "test_accuracy_se": 0.005, "joined": joined, "vote": vote},
        "finetune-clf-scratch": {**tuned, **seeds},
    }
    sheets = paper_tables(records, task="cifar10", pretrained_on="cifar10, no labels")
    assert [sheet.name for sheet in sheets] == ["table-1", "table-3"]
    section = paper_section(sheets)
    for text in (
        "44.0 ± 0.5",
        "layers 0 to 1 joined",
        "vote of 5 masks",
        "96.3",
        "51.0 ± 1.4",
        "99.0",
        "classification loss alone, from scratch, 2 seeds",
    ):
        assert text in section
    assert "Few labels" not in section
    assert paper_tables(records, task="my", pretrained_on="mine") == []
    assert paper_section([]) == ""
    for sheet in sheets:
        save_sheet(tmp_path, sheet)
        assert (tmp_path / f"{sheet.name}.svg").read_text().lstrip().startswith("<?xml")
        assert (tmp_path / f"{sheet.name}.png").read_bytes().startswith(b"\x89PNG")
    held = json.loads((tmp_path / "table-1.json").read_text())
    assert held["rows"][0] == ["ours, layer 1", "44.0 ± 0.5", "cifar10, no labels"]
    assert ["iGPT-L 32 \u00d7 32 (paper)", "96.3", "ImageNet, no labels"] in held["rows"]


def with_losses(folder: Path, *, gain: float) -> Path:
    """A run of three validations, with a probe at each."""
    a_run(folder)
    lines = [{"step": 10, "valid_nats": 4.0}, {"step": 20, "valid_nats": 3.5 - gain}, {"step": 30}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for step, accuracy in ((10, 0.3), (20, 0.4 + gain), (30, 0.5)):
        write_record(folder, f"probe-step-{step:07}", probe(accuracy), **ABOUT)
    return folder


def test_loss_against_probe_joins_probes_and_metrics_by_step(tmp_path: Path) -> None:
    runs = {"small": [with_losses(tmp_path / "a", gain=0)]}
    (series,) = loss_against_probe(runs).series
    assert (series.x, series.y, series.error) == ([3.5, 4.0], [0.4, 0.3], None)


def test_seeds_of_one_model_stand_as_mean_and_deviation(tmp_path: Path) -> None:
    folders = [with_losses(tmp_path / name, gain=g) for name, g in (("a", 0.0), ("b", 0.1))]
    (series,) = loss_against_probe({"small": folders}).series
    assert series.x == pytest.approx([3.45, 4.0])
    assert series.y == pytest.approx([0.45, 0.3])
    assert series.error == pytest.approx([0.0707, 0], abs=1e-4)


def test_a_seed_alone_has_no_error_bar(tmp_path: Path) -> None:
    folders = [with_losses(tmp_path / name, gain=g) for name, g in (("a", 0.0), ("b", 0.1))]
    for folder, accuracy in zip(folders, (0.6, 0.7), strict=True):
        write_record(folder, "finetune", {"test_accuracy": accuracy}, **ABOUT)
    write_record(folders[0], "probe", probe(0.5), **ABOUT)
    chart = objectives_compared({"two": folders})
    (series,) = chart.series
    assert series.error == [None, pytest.approx(0.0707, abs=1e-4)]
    assert chart.to_dict()["series"]["two"]["error"][0] is None
    assert "svg" in chart.svg()
    assert ">-<" in chart_table(chart) and ">7.1<" in chart_table(chart)


def test_losses_of_another_objective_are_left_out(tmp_path: Path) -> None:
    folder = with_losses(tmp_path / "a", gain=0)
    other = with_losses(tmp_path / "b", gain=0)
    config = json.loads((other / "config.json").read_text())
    config["train"]["objective"] = "bert"
    (other / "config.json").write_text(json.dumps(config))
    charts = compared_charts({"AR": [folder], "BERT": [other]})
    assert [series.label for series in charts["figure-3"].series] == ["AR"]
    assert list(charts) == ["figure-3"]


def test_objectives_and_layers_of_two_runs_are_drawn_together(tmp_path: Path) -> None:
    for name, accuracy in (("ar", 0.44), ("bert", 0.4)):
        write_record(tmp_path / name, "probe", probe(accuracy), **ABOUT)
    write_record(tmp_path / "ar", "finetune", {"test_accuracy": 0.6}, **ABOUT)
    runs = {"autoregressive": [tmp_path / "ar"], "BERT": [tmp_path / "bert"]}
    one, other = objectives_compared(runs).series
    assert (one.x, one.y) == ([0, 1], [0.44, 0.6])
    assert (other.x, other.y) == ([0], [0.4])
    assert layers_compared(runs).series[0].x == [0.0, 0.5, 1.0]


def test_a_vote_and_the_class_loss_alone_have_places_of_their_own(tmp_path: Path) -> None:
    votes = {**probe(0.4), "vote": {"n_masks": 5, "test_accuracy": 0.42}}
    write_record(tmp_path / "ar", "probe", probe(0.44), **ABOUT)
    write_record(tmp_path / "bert", "probe", votes, **ABOUT)
    for name, accuracy in (("ar", 0.48), ("bert", 0.45)):
        write_record(tmp_path / name, "finetune-clf", {"test_accuracy": accuracy}, **ABOUT)
    chart = objectives_compared({name: [tmp_path / name] for name in ("ar", "bert")})
    one, other = chart.series
    names = [name.split(",")[0] for name in chart.x_names]
    assert names == ["linear probe", "vote of masks", "fine-tuned"]
    assert (one.x, one.y) == ([0, 2], [0.44, 0.48])
    assert (other.x, other.y) == ([0, 1, 2], [0.4, 0.42, 0.45])


@pytest.mark.parametrize("name", ["figure-2", "figure-4"])
def test_charts_are_saved_in_three_forms(tmp_path: Path, name: str) -> None:
    write_record(tmp_path / "ar", "probe", probe(0.44), **ABOUT)
    make = layers_compared if name == "figure-2" else objectives_compared
    save_chart(tmp_path, name, make({"autoregressive": [tmp_path / "ar"]}))
    assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / f"{name}.json").read_text())
    assert 0.44 in numbers["series"]["autoregressive"]["y"]
