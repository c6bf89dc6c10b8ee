"""`igpt.evaluate` and `igpt.probe` from Python, and the probe that looks at a run as it trains."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import igpt
from igpt.config import ProbeConfig, RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.images.prepare import open_data
from igpt.jobs.looks import check_looks
from igpt.report.record import read_records
from igpt.report.report import write_report
from igpt.train.folder import read_metrics
from igpt.train.log import plain_figures
from tests.cli.test_main import run
from tests.networks import pixel_model
from tests.train.making import tiny, trained


@pytest.fixture(scope="module")
def looked(tmp_path_factory, own_cache):
    """A run with a probe every 5 of its 8 steps, and one without."""
    base = tmp_path_factory.mktemp("looked")
    trained(tiny(probe_every=5), base / "looked")
    trained(tiny(), base / "plain")
    return base


def test_python_gives_what_the_command_prints_and_says_nothing(digits, tmp_path, capfd):
    model = str(pixel_model().save(tmp_path / "tiny"))
    found = igpt.evaluate(model, "digits", split="valid", max_images=50, precision="fp32")
    probed = igpt.probe(model, "digits", raw_pixels=False, precision="fp32")
    assert capfd.readouterr() == ("", "")
    line = ["evaluate", model, "digits", "--split", "valid", "--max-images", "50"]
    _, out, _ = run([*line, "--precision", "fp32", "--json"], capfd)
    assert json.loads(out) == found and found["n_images"] == 50
    line = ["probe", model, "digits", "--no-raw-pixels", "--precision", "fp32", "--json"]
    _, out, _ = run(line, capfd)
    assert json.loads(out) == json.loads(json.dumps(probed))


def test_a_model_in_memory_is_judged_too(digits):
    model = pixel_model()
    found = igpt.evaluate(model, "digits", max_images=20)
    expected = model.surprise(digits.at_most(20).images("test")[:]).mean()
    assert found["model"] == "a model in memory"
    assert found["nats_per_token"] == pytest.approx(expected, rel=1e-2)


def test_a_run_keeps_the_figures_whoever_asks(digits, looked):
    igpt.evaluate(str(looked / "plain"), "digits", max_images=20)
    igpt.probe(looked / "plain", "digits", raw_pixels=False)
    records = read_records(looked / "plain")
    assert {"likelihood-test", "probe"} <= set(records)
    assert records["probe"]["command"] == "Python"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"joined": -1}, "--joined is -1"),
        ({"joined": "many"}, "joined is 'many'"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"large": True, "kmeans": 3}, "--large does not take --kmeans"),
        ({"max_images": 0}, "--max-images is 0"),
    ],
)
def test_settings_of_no_use_are_refused_in_a_line(digits, settings, words):
    with pytest.raises(UserError, match=words):
        igpt.probe(pixel_model(), "digits", **settings)


def test_numbers_of_numpy_are_numbers(digits):
    found = igpt.probe(pixel_model(), "digits", joined=np.int64(2), raw_pixels=np.bool_(False))
    assert len(found["joined"]["layers"]) == 2 and "raw_pixels" not in found


def test_a_configuration_and_single_settings_go_together(digits):
    config = ProbeConfig(solver="knn", raw_pixels=True)
    found = igpt.probe(pixel_model(), "digits", config=config, raw_pixels=False)
    assert found["solver"] == "knn" and "raw_pixels" not in found


# A probe while it trains.


def test_a_run_that_is_probed_learns_the_same(looked):
    weights = [
        torch.cat([w.flatten() for w in igpt.load(looked / name).network.state_dict().values()])
        for name in ("looked", "plain")
    ]
    assert torch.equal(*weights)


def test_accuracies_by_layer_are_those_of_the_model(looked):
    lines = [line for line in read_metrics(looked / "looked") if "probe_accuracy" in line]
    assert [line["step"] for line in lines] == [5, 8]
    assert all(
        len(line[name]) == 3 for line in lines for name in ("probe_accuracy", "knn_accuracy")
    )
    # The last one, by hand: scikit-learn on the features of the model that the run left.
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    model, data = igpt.load(looked / "looked"), open_data("digits", image_size=8)
    fit, judge = (
        normalize(model.features(data.images(split)[:], layer=1)) for split in ("train", "valid")
    )
    best = max(
        KNeighborsClassifier(
            n_neighbors=k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
        ).fit(fit, data.labels("train")).score(judge, data.labels("valid"))
        for k in (1, 5, 10, 20, 50, 100, 200)
    )  # fmt: skip
    assert lines[-1]["knn_accuracy"][1] == pytest.approx(best, abs=0.02)
    # And by the probe itself, which sees the same images: digits has fewer than are taken.
    probed = igpt.probe(looked / "looked", "digits", raw_pixels=False)
    expected = [score["valid_accuracy"] for score in probed["by_layer"]]
    assert lines[-1]["probe_accuracy"] == pytest.approx(expected, abs=0.01)


def test_trackers_and_the_report_get_it_by_layer(looked):
    line = next(line for line in read_metrics(looked / "looked") if "probe_accuracy" in line)
    assert {"probe_accuracy/0", "probe_accuracy/2", "knn_accuracy/1"} <= set(plain_figures(line))
    page = write_report(looked / "looked").read_text()
    assert "What its layers came to know" in page
    assert (looked / "looked" / "figures" / "probe-while-training.png").is_file()
    assert "What its layers came to know" not in write_report(looked / "plain").read_text()


def test_a_resumed_run_probes_as_if_it_had_not_stopped(looked, tmp_path):
    trained(tiny(probe_every=5, checkpoint_at=(5,)), tmp_path / "whole")
    for path in (tmp_path / "whole" / "checkpoints").iterdir():
        if path.name > "step-0000005":
            shutil.rmtree(path)
    shutil.rmtree(tmp_path / "whole" / "model")
    trained(tiny(probe_every=5, checkpoint_at=(5,)), tmp_path / "whole", resume=True)
    told = [
        [line for line in read_metrics(folder) if "probe_accuracy" in line]
        for folder in (tmp_path / "whole", looked / "looked")
    ]
    assert told[0][-1] == told[1][-1]


def test_without_labels_it_is_refused_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8, 3), i * 20, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    line = ["pretrain", str(tmp_path / "photos"), str(tmp_path / "run"), "--train.probe-every", "5"]
    status, _, err = run([*line, "--data.image-size", "8", "--data.n-colors", "4"], capsys)
    assert status == 2 and "train.probe_every fits a probe on labels" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_labels_of_one_class_are_refused(tmp_path, own_cache):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for i in range(20):
        picture = Image.fromarray(np.full((8, 8, 3), i * 10, np.uint8))
        picture.save(tmp_path / "photos" / "cat" / f"{i}.png")
    config = RunConfig(train=TrainConfig(probe_every=5))
    with pytest.raises(UserError, match="class"):
        check_looks(config, open_data(str(tmp_path / "photos"), image_size=8))


@pytest.mark.parametrize("take", [igpt.evaluate, igpt.probe])
def test_data_that_is_no_name_is_refused_by_its_type(take):
    model = pixel_model()
    for data, kind in ((np.zeros((2, 8, 8, 3)), "ndarray"), (None, "NoneType")):
        with pytest.raises(UserError, match=f"^{kind} is no path: name a file or a folder$"):
            take(model, data)
