"""`igpt probe`, `igpt finetune` and `igpt lowdata` on scikit-learn's digits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_main import run
from tests.networks import pixel_model


@pytest.fixture
def model(tmp_path, digits):
    return str(pixel_model().save(tmp_path / "tiny"))


def test_probe_tells_the_accuracy_by_layer_and_saves_the_best(model, capsys):
    status, out, _ = run(["probe", model, "digits", "--json"], capsys)
    said = json.loads(out)
    assert status == 0
    assert [score["layer"] for score in said["by_layer"]] == [0, 1, 2]
    assert said["test_accuracy"] > 0.3
    assert said["raw_pixels"]["test_accuracy"] > 0.85
    assert json.loads((Path(model) / "probe.json").read_text())["layer"] == said["layer"]


def test_probe_of_bert_votes_and_layers_can_be_joined(tmp_path, digits, capsys):
    model = str(pixel_model(objective="bert").save(tmp_path / "bert"))
    _, out, _ = run(["probe", model, "digits", "--joined", "2", "--no-raw-pixels"], capsys)
    assert "joined: " in out
    assert "modal answer of 5 masks: " in out
    assert "raw pixels" not in out


def test_finetune_reports_the_best_step_on_test(model, capsys):
    few = ["--finetune.total-steps", "6", "--finetune.valid-every", "3", "--finetune.lr", "0.003"]
    status, out, _ = run(["finetune", model, "digits", *few, "--json"], capsys)
    said = json.loads(out)
    assert status == 0
    assert said["step"] in (3, 6)
    assert [point["step"] for point in said["curve"]] == [3, 6]
    assert (said["joint"], said["scratch"], said["image_size"]) == (True, False, 8)


def test_finetune_at_another_size_from_scratch(model, capsys):
    few = ["--finetune.total-steps", "2", "--finetune.no-joint", "--scratch"]
    _, out, _ = run(["finetune", model, "digits", *few, "--image-size", "6", "--json"], capsys)
    said = json.loads(out)
    assert (said["joint"], said["scratch"], said["image_size"]) == (False, True, 6)
    assert said["curve"][0]["token_nats"] is None


def test_lowdata_has_a_row_for_each_method_and_number_of_labels(model, capsys):
    command = ["lowdata", model, "digits", "--labels", "2", "8", "--subsets", "2"]
    baselines = ["--scratch-steps", "1", "--wide-resnet-steps", "1"]
    status, out, _ = run([*command, *baselines, "--json"], capsys)
    rows = json.loads(out)["rows"]
    assert status == 0
    methods = ["features", "raw pixels", "Transformer from scratch", "Wide ResNet 28-2"]
    assert [row["method"] for row in rows] == methods * 2
    assert [row["labels_per_class"] for row in rows] == [2] * 4 + [8] * 4
    assert rows[5]["mean"] > rows[1]["mean"] > 0.3
    assert all(len(row["accuracies"]) == 2 for row in rows)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["lowdata", "{model}", "digits", "--labels", "500"],
            "fewer than the 500 labels per class",
        ),
        (["finetune", "{model}", "digits", "--finetune.layer", "3"], "choose from 0 to 2"),
        (["finetune", "{model}", "digits", "--finetune.lr", "0"], "finetune.lr is 0.0"),
        (["probe", "{model}", "unlabelled"], "has no labels"),
        (["finetune", "{model}", "unlabelled"], "has no labels"),
        (["lowdata", "{model}", "unlabelled"], "has no labels"),
    ],
)
def test_what_cannot_be_done_is_one_line(model, tmp_path, monkeypatch, capsys, args, line):
    monkeypatch.chdir(tmp_path)
    for i, value in enumerate(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3))):
        path = tmp_path / "unlabelled" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(value.astype(np.uint8)).save(path)
    status, out, error = run([arg.format(model=model) for arg in args], capsys)
    assert status == 2
    assert out == ""
    last = error.strip().splitlines()[-1]
    assert last.startswith("igpt: error: ")
    assert line in last
