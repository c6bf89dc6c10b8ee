"""`igpt probe`, `igpt finetune` and `igpt lowdata` on scikit-learn's digits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import igpt
from igpt.jobs.opening import open_for, open_labelled
from igpt.model.gpt import GPT
from igpt.probing.exact import checked_labels
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


def test_the_probe_of_a_model_that_ships_stays_as_it_is(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    for i, pixels in enumerate(noise):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    before = igpt.load("cifar10-small").probe()
    command = ["probe", "cifar10-small", str(tmp_path / "photos"), "--no-raw-pixels"]
    status, out, err = run(command, capsys)
    assert status == 0
    assert " on 4 images" in out
    assert "not saved, as cifar10-small ships with igpt" in err
    assert igpt.load("cifar10-small").probe().classes == before.classes


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


def test_a_finetuned_model_is_saved_with_its_head_and_opens_in_transformers(
    model, tmp_path, digits, capsys
):
    few = ["--finetune.total-steps", "20", "--finetune.batch-size", "16"]
    few += ["--finetune.lr", "0.01", "--max-images", "90"]
    tuned, theirs = tmp_path / "tuned", tmp_path / "theirs"
    status, out, _ = run(["finetune", model, "digits", *few, "--out", str(tuned), "--json"], capsys)
    assert status == 0
    few_digits = open_for(igpt.load(model), "digits", max_images=90)
    images, labels = few_digits.images("test")[:], few_digits.labels("test")
    named = igpt.load(tuned).classify(images)
    right = np.mean([name == digits.classes[k] for name, k in zip(named, labels, strict=True)])
    assert right == pytest.approx(json.loads(out)["test_accuracy"], abs=0.02)
    as_classifier = ["--to", "transformers-classifier"]
    assert run(["convert", str(tuned), str(theirs), *as_classifier], capsys)[0] == 0
    ours, again = igpt.load(tuned), igpt.load(theirs)
    assert ours.digest() != igpt.load(model).digest()
    assert ours.probe().weights.any()
    np.testing.assert_array_equal(ours.probe().weights, again.probe().weights)
    np.testing.assert_array_equal(ours.features(images, 2), again.features(images, 2))
    assert again.classify(images) == named
    status, _, err = run(["finetune", model, "digits", "--out", str(tmp_path)], capsys)
    assert status == 2
    assert f"{tmp_path} is not empty: choose another place" in err


def test_a_model_is_never_replaced(model, tmp_path, capsys):
    assert run(["convert", model, str(tmp_path / "copy")], capsys)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    for command in (["convert", model], ["finetune", model, "digits", "--out"]):
        status, _, err = run([*command, str(tmp_path / "copy")], capsys)
        assert status == 2
        assert err == f"igpt: error: {tmp_path / 'copy'} is not empty: choose another place\n"
    assert {path: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before


def test_finetune_over_seeds_tells_mean_and_spread(model, capsys):
    few = ["--finetune.total-steps", "2", "--finetune.valid-images", "20", "--seeds", "2"]
    rates = ["--rates", "0.01", "0.003"]
    _, out, _ = run(["finetune", model, "digits", *few, *rates, "--json"], capsys)
    said = json.loads(out)
    assert len(said["test_accuracies"]) == 2
    assert said["test_accuracy"] == pytest.approx(np.mean(said["test_accuracies"]))
    assert said["test_accuracy_sd"] == pytest.approx(np.std(said["test_accuracies"], ddof=1))
    assert said["lr"] in (0.01, 0.003)


def test_probe_by_stochastic_gradients(model, capsys):
    command = ["probe", model, "digits", "--solver", "sgd", "--sgd-steps", "300"]
    _, out, _ = run([*command, "--no-raw-pixels", "--json"], capsys)
    said = json.loads(out)
    assert said["solver"] == "sgd"
    assert said["strength"] in (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
    assert said["test_accuracy"] > 0.2


def test_finetune_at_another_size_from_scratch(model, capsys):
    few = ["--finetune.total-steps", "2", "--finetune.no-joint", "--scratch"]
    _, out, _ = run(["finetune", model, "digits", *few, "--image-size", "12", "--json"], capsys)
    said = json.loads(out)
    assert (said["joint"], said["scratch"], said["image_size"]) == (False, True, 12)
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


def test_every_checkpoint_is_probed_and_stands_in_the_report(tmp_path, digits, capsys):
    place = str(tmp_path / "run")
    tiny = ["--model.n-layer", "1", "--model.n-embd", "8", "--model.n-head", "1"]
    steps = ["--train.total-steps", "4", "--train.checkpoint-every", "2", "--train.batch-size", "4"]
    quick = ["--train.valid-every", "2", "--train.valid-images", "8", "--train.compile", "off"]
    data = ["--data.image-size", "8", "--data.n-colors", "9", "--train.precision", "fp32"]
    assert run(["pretrain", "digits", place, *tiny, *steps, *quick, *data], capsys)[0] == 0
    command = ["probe", place, "digits", "--checkpoints", "--max-images", "60", "--json"]
    status, out, _ = run(command, capsys)
    said = json.loads(out)["checkpoints"]
    assert status == 0
    assert list(said) == ["2", "4"]
    assert said["4"]["n_train"] == 60
    assert not (tmp_path / "run" / "model" / "probe.json").exists()
    status, out, _ = run(["report", place, "--name", "tiny"], capsys)
    assert out.strip().endswith("report.html")
    figure = json.loads((tmp_path / "run" / "figures" / "figure-3.json").read_text())
    assert len(figure["series"]["tiny"]["x"]) == 2


@pytest.fixture
def no_work(monkeypatch):
    """Fails where a network is run at all: refusals come before the long work."""

    def worked(*_, **__):
        raise AssertionError("the network was run")

    monkeypatch.setattr(GPT, "hidden", worked)
    monkeypatch.setattr(GPT, "forward", worked)


@pytest.fixture
def places(model, tmp_path, digits, monkeypatch):
    """Sets that no classifier can come of, and a model that reads larger images."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    for folder in ("unlabelled", "alike/train/cat", "alike/test/cat", "alike/test/dog"):
        for i, pixels in enumerate(noise):
            path = tmp_path / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    pixel_model(image_size=16).save(tmp_path / "larger")
    return {"model": model, "packed": str(digits.folder), "larger": str(tmp_path / "larger")}


ONE_CLASS = "all train images are of one class: a probe needs at least two"
NO_LABELS = "unlabelled has no labels: give one folder a class, or a labelled set"
TOO_SMALL = "is packed at 8 pixels, 16 are needed here: prepare it again with --image-size 16"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["lowdata", "{model}", "digits", "--labels", "500"],
            "class 0 has 136 training images, fewer than the 500 labels per class asked for: ask "
            "for fewer",
        ),
        (
            ["lowdata", "{model}", "digits", "--labels"],
            "--labels names no number: give one or several, such as --labels 4 25",
        ),
        (
            ["evaluate", "{model}", "digits", "--max-images", "-2"],
            "--max-images is -2: it must be at least 1",
        ),
        (
            ["lowdata", "{model}", "digits", "--subsets", "0"],
            "--subsets must be at least 1, and no number of steps may be negative",
        ),
        (
            ["probe", "{model}", "digits", "--sgd-steps", "0"],
            "--sgd-steps is 0: it must be at least 1",
        ),
        (
            ["probe", "{model}", "digits", "--sgd-steps", "9"],
            "--sgd-steps 9 would do nothing: it acts under --solver sgd or --large alone, "
            "so ask for that too or leave it out",
        ),
        (
            ["finetune", "{model}", "digits", "--finetune.layer", "3"],
            "layer 3 does not exist: choose from 0 to 2",
        ),
        (
            ["finetune", "{model}", "digits", "--finetune.lr", "0"],
            "finetune.lr is 0.0: it must be above 0",
        ),
        (
            ["finetune", "{model}", "digits", "--finetune.valid-images", "0"],
            "finetune.valid_images is 0: it must be at least 1",
        ),
        (["finetune", "{model}", "digits", "--seeds", "0"], "--seeds is 0: it must be at least 1"),
        (["probe", "{model}", "unlabelled"], NO_LABELS),
        (["finetune", "{model}", "unlabelled"], NO_LABELS),
        (["lowdata", "{model}", "unlabelled"], NO_LABELS),
        (["probe", "{model}", "alike"], ONE_CLASS),
        (["finetune", "{model}", "alike"], ONE_CLASS),
        (["lowdata", "{model}", "alike"], ONE_CLASS),
        (["probe", "{larger}", "{packed}"], "{packed} " + TOO_SMALL),
        (["finetune", "{larger}", "{packed}"], "{packed} " + TOO_SMALL),
        (["lowdata", "{larger}", "{packed}"], "{packed} " + TOO_SMALL),
        (["finetune", "{model}", "{packed}", "--image-size", "16"], "{packed} " + TOO_SMALL),
        (
            ["probe", "{model}", "digits", "--max-images", "0"],
            "--max-images is 0: it must be at least 1",
        ),
        (["report", "none"], "none holds no run (config.json is missing): check the path"),
        (
            ["report", "{model}", "--beside", "BERT"],
            "--beside BERT: write NAME=RUN, such as BERT=runs/bert",
        ),
        (
            ["probe", "{model}", "digits", "--checkpoints"],
            "{model} keeps no checkpoint that can be probed: train it first",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(places, no_work, capsys, args, line):
    status, out, error = run([arg.format(**places) for arg in args], capsys)
    assert (status, out) == (2, "")
    assert error.splitlines()[-1] == "igpt: error: " + line.format(**places)


def test_a_split_without_images_is_named_with_those_that_have_some(model, tmp_path, capsys):
    np.save(tmp_path / "few.npy", np.zeros((4, 9, 9, 3), np.uint8))
    status, _, err = run(["evaluate", str(model), str(tmp_path / "few.npy")], capsys)
    assert status == 2
    assert "few.npy has no test images (train 4): give data that has some" in err


def test_images_without_a_label_are_left_out_of_probes_and_classes_unseen_are_named(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    for split, names in (("train", ("a", "b", "")), ("test", ("a", "B"))):
        for name in names:
            for i in range(6):
                path = tmp_path / "data" / split / name / f"{name}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((9, 9, 3), 9 * i, np.uint8)).save(path)
    data = open_labelled(pixel_model(), str(tmp_path / "data"))
    error = capsys.readouterr().err
    assert data.n("train") + data.n("valid") == 12
    assert (data.labels("test") >= 0).all()
    assert "labels: 3 classes from the names of folders; 6 of 30 have none" in error
    assert "train images have no label and are left out" in error
    checked_labels(data)
    said = "6 of 12 test images are of classes that training lacks (B)"
    assert said in capsys.readouterr().err
