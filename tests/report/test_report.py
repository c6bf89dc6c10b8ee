"""The report: whole, self-contained, and never more than the run holds."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from igpt import files
from igpt.config import DataConfig, ModelConfig, Objective, RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.report.charts import Chart, Level, Series
from igpt.report.page import table
from igpt.report.record import read_records, write_record
from igpt.report.report import write_report

ABOUT = {"model": "runs/a", "data": "cifar10", "split": "test"}


def a_run(folder: Path, *, objective: Objective = "ar") -> Path:
    """A run folder that holds its configuration only."""
    config = RunConfig(
        data=DataConfig(image_size=8),
        model=ModelConfig(n_layer=2, n_head=2, n_embd=8),
        train=TrainConfig(total_steps=100, batch_size=16, objective=objective),
    )
    facts = {"data": "cifar10 <b>", "command": "igpt pretrain cifar10 runs/a"}
    files.write_json(folder / "config.json", {**config.to_dict(), "facts": facts})
    return folder


def probe_values() -> dict[str, Any]:
    def result(layer: int, accuracies: list[float]) -> dict[str, Any]:
        scores = [
            {"layer": i, "strength": 0.01, "valid_accuracy": value, "valid_loss_nats": 1.6}
            for i, value in enumerate(accuracies)
        ]
        return {
            "by_layer": scores,
            "layer": layer,
            "valid_accuracy": accuracies[layer],
            "test_accuracy": accuracies[layer] - 0.01,
            "test_accuracy_se": 0.005,
            "n_valid": 5000,
            "n_test": 10000,
        }

    return {**result(1, [0.301, 0.412, 0.377]), "raw_pixels": result(0, [0.39])}


def fill(folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": s, "images": 16 * s, "loss_nats": 6 - s / 50, "images_per_s": 60.0}
        for s in range(1, 101)
    ]
    lines.append({"step": 100, "images": 1600, "valid_nats": 4.125})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    colors = np.random.default_rng(0).uniform(-1, 1, (512, 3)).astype(np.float32)
    np.save(folder / "palette.npy", colors)
    (folder / "pictures").mkdir()
    for name in ("samples", "completions"):
        Image.new("RGB", (20, 10)).save(folder / "pictures" / f"{name}.png")
    likelihood = {
        "nats_per_token": 4.0567,
        "nats_per_token_se": 0.01,
        "bits_per_pixel": 5.8526,
        "bits_per_dim": None,
        "unigram_nats_per_token": 5.9,
        "bigram_nats_per_token": 4.9,
        "n_images": 10000,
    }
    write_record(folder, "likelihood-test", likelihood, **ABOUT)
    write_record(folder, "probe", probe_values(), **ABOUT)


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_report_shows_everything_the_run_holds(tmp_path: Path) -> None:
    fill(a_run(tmp_path))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = path.read_text()
    assert headings(page) == [
        "Pictures it makes up",
        "Halves it completes",
        "What its layers know",
        "How it learned",
        "Its colours",
        "Beside the paper",
        "The numbers",
        "The run",
    ]
    for number in ("40.2 %", "38.0 %", "4.057", "4.0567", "5.8526", "41.2 %", "4.1250"):
        assert number in page
    assert page.count("<details>") == 4
    assert "cifar10 &lt;b&gt;" in page
    assert "cifar10 <b>" not in page


def test_how_features_were_pooled_is_said(tmp_path: Path) -> None:
    a_run(tmp_path)
    write_record(tmp_path, "probe", {**probe_values(), "pooling": "bands"}, **ABOUT)
    page = write_report(tmp_path).read_text()
    assert "averaged over four bands of rows" in page
    assert "ours, pooled in bands, layer 1" in page


def test_a_probe_without_probabilities_has_no_loss_to_show(tmp_path: Path) -> None:
    """Ridge regression of large sets, and neighbours."""
    run, values = a_run(tmp_path / "run"), probe_values()
    for score in values["by_layer"]:
        score["valid_loss_nats"] = None
    write_record(run, "probe", {**values, "solver": "knn"}, **ABOUT)
    text = write_report(run).read_text()
    assert "neighbours" in text and "41.2" in text


def test_both_poolings_stand_beside_the_paper(tmp_path: Path) -> None:
    a_run(tmp_path)
    bands = {**probe_values(), "layer": 2, "test_accuracy": 0.579, "test_accuracy_se": 0.005}
    write_record(tmp_path, "probe", {**probe_values(), "bands": bands}, **ABOUT)
    page = write_report(tmp_path).read_text()
    assert "ours, layer 1" in page
    assert "<td>ours, pooled in bands, layer 2</td>" in page
    assert "57.9 ± 0.5" in page


def test_figures_and_tables_are_written_beside_the_page(tmp_path: Path) -> None:
    fill(a_run(tmp_path))
    write_report(tmp_path)
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    ends = ("svg", "png", "json")
    assert written == {f"{name}.{end}" for name in ("figure-2", "table-1") for end in ends}
    figure = json.loads((tmp_path / "figures" / "figure-2.json").read_text())
    assert figure["series"]["features"]["y"] == [0.301, 0.412, 0.377]
    assert figure["levels"] == {"raw pixels": 0.39}


def test_other_runs_stand_beside_this_one(tmp_path: Path) -> None:
    fill(a_run(tmp_path / "ar"))
    fill(a_run(tmp_path / "bert", objective="bert"))
    beside = {"BERT": [tmp_path / "bert"]}
    page = write_report(tmp_path / "ar", name="AR", beside=beside).read_text()
    assert "Beside other models" in headings(page)
    assert page.count("<td>BERT</td>") > 1
    assert (tmp_path / "ar" / "figures" / "figure-4.svg").is_file()


def test_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    fill(a_run(tmp_path))
    page = write_report(tmp_path).read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in page
    assert "url(" not in page


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    fill(a_run(tmp_path))
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_what_is_missing_is_left_out(tmp_path: Path, objective: Objective) -> None:
    a_run(tmp_path, objective=objective)
    assert headings(write_report(tmp_path).read_text()) == ["The run"]


def test_bert_has_a_curve_without_the_levels_of_likelihood(tmp_path: Path) -> None:
    fill(a_run(tmp_path, objective="bert"))
    page = write_report(tmp_path).read_text()
    assert "fill in pixels" in page
    assert "blind guess" not in page


def test_torn_last_line_of_the_metrics_is_passed_over(tmp_path: Path) -> None:
    fill(a_run(tmp_path))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "im')
    assert "How it learned" in write_report(tmp_path).read_text()


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


def test_damaged_record_is_named(tmp_path: Path) -> None:
    a_run(tmp_path)
    files.write_bytes(tmp_path / "evaluations" / "probe.json", b"{")
    with pytest.raises(UserError, match=r"probe\.json is not valid JSON"):
        write_report(tmp_path)


def test_names_are_shown_as_they_are() -> None:
    labels = ("_hidden a_b", "cost $x_1$", "plain")
    chart = Chart(
        series=tuple(Series(label, [1, 2], [1, 2]) for label in labels),
        levels=(Level("_level $y$", 1.2),),
        x_label="x",
        y_label="y",
    )
    for text in (*labels, "_level $y$"):
        assert text in chart.svg()


def test_records_come_back_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/igpt", "probe", "run"])
    write_record(tmp_path, "probe", {"layer": 3}, **ABOUT)
    record = read_records(tmp_path)["probe"]
    assert record["layer"] == 3
    assert record["split"] == "test"
    assert record["command"] == "igpt probe run"


def test_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    files.write_json(tmp_path / "evaluations" / "mine.json", {"layer": 3})
    with pytest.raises(UserError, match="is not a record"):
        read_records(tmp_path)


def test_chart_can_be_drawn_and_written_down() -> None:
    chart = Chart(
        series=(Series("ours", [1, 2], [0.1, 0.2], "both", error=[0.01, 0.02]),),
        levels=(Level("theirs", 0.15),),
        x_label="layer",
        y_label="accuracy",
        percent=True,
    )
    assert chart.svg().lstrip().startswith("<?xml")
    assert chart.svg() == chart.svg()
    assert chart.png()[:8] == b"\x89PNG\r\n\x1a\n"
    written = json.loads(json.dumps(chart.to_dict()))
    assert written["series"]["ours"] == {"x": [1, 2], "y": [0.1, 0.2], "error": [0.01, 0.02]}
    assert written["levels"] == {"theirs": 0.15}


def test_no_share_is_above_the_whole_or_below_nothing() -> None:
    chart = Chart(series=(Series("a", [0, 1], [0.0, 1.0]),), x_label="x", y_label="y", percent=True)
    ticks = re.findall(r">(-?[0-9.]+) %<", chart.svg().replace("\N{MINUS SIGN}", "-"))
    assert {"0", "100"} <= set(ticks)
    assert all(0 <= float(tick) <= 100 for tick in ticks)


def test_table_escapes_all_but_code() -> None:
    made = table(("a<b", "c"), [("`x<y`", "&")], numbers=(1,), best=[0])
    assert "<th>a&lt;b</th>" in made
    assert "<td><code>x&lt;y</code></td>" in made
    assert '<td class="number">&amp;</td>' in made
    assert '<tr class="best">' in made


def test_grids_that_training_drew_stand_in_for_those_of_the_model(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    drawn = run / "pictures" / "training"
    drawn.mkdir(parents=True)
    for step in (50, 100):
        Image.new("RGB", (4, 4)).save(drawn / f"samples-{step:07d}.png")
    assert "while it trained, at step 100)" in write_report(run).read_text()
    Image.new("RGB", (4, 4)).save(run / "pictures" / "samples.png")
    assert "while it trained" not in write_report(run).read_text()
