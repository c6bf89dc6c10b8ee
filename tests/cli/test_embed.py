"""`igpt embed` and `igpt classify` on files and folders."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from igpt.loading import load
from tests.cli.test_main import run
from tests.networks import pixel_model, probe_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Pictures in two folders, and a model."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("cats/a.png", "cats/b.png", "dogs/c.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + i, 30, 3), 60 * i + 20, np.uint8)).save(name)
    pixel_model().save("tiny")
    return tmp_path


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_embed_writes_path_label_and_vector(place, capsys, ending):
    command = ["embed", "tiny", "cats", "dogs/c.png", "--out", f"f.{ending}", "--layer", "1"]
    status, out, _ = run([*command, "--json"], capsys)
    assert status == 0
    said = {"out": f"f.{ending}", "images": 3, "layer": 1, "width": 16, "pooling": "mean"}
    said["left_out"] = []
    assert json.loads(out) == said
    if ending == "npz":
        held = dict(np.load("f.npz"))
    else:
        columns = pq.read_table("f.parquet").to_pydict()
        held = {name: np.array(values) for name, values in columns.items()}
    assert held["path"].tolist() == ["cats/a.png", "cats/b.png", "dogs/c.png"]
    assert held["label"].tolist() == ["cats", "cats", "dogs"]
    expected = load("tiny").features(held["path"].tolist(), layer=1)
    np.testing.assert_allclose(held["vector"], expected, rtol=1e-2, atol=1e-2)


def test_classify_names_each_image_by_the_saved_probe(place, capsys):
    model = load("tiny")
    probe_of(model, (0.25, 0.75)).save(place / "tiny")
    _, out, _ = run(["classify", "tiny", "cats"], capsys)
    assert out == "cats/a.png  dog 75.0%\ncats/b.png  dog 75.0%\n"
    _, out, _ = run(["classify", "tiny", "cats/a.png", "--top", "2", "--json"], capsys)
    (image,) = json.loads(out)["images"]
    assert image["classes"] == pytest.approx({"dog": 0.75, "cat": 0.25})
    status, _, error = run(["classify", "tiny", "cats", "--top", "3"], capsys)
    assert status == 2
    assert "choose from 1 to 2 classes" in error


def test_probe_of_another_model_or_palette_is_refused(place, capsys):
    model = load("tiny")
    model.network.wte.weight.data += 1
    probe_of(model).save(place / "tiny")
    status, out, error = run(["classify", "tiny", "cats"], capsys)
    line = "the probe in tiny was fitted on another model or palette: run igpt probe on this one"
    assert (status, out, error) == (2, "", f"igpt: error: {line}\n")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["embed", "tiny", "none"], "none is neither a file nor a folder"),
        (["embed", "tiny", "tiny"], "tiny holds no images"),
        (
            ["embed", "tiny", "cats", "--out", "f.csv"],
            "choose a name that ends in .npz or .parquet",
        ),
        (["embed", "tiny", "cats", "--out", "old.npz"], "old.npz exists"),
        (["embed", "tiny", "cats", "--layer", "3"], "choose 0 to 2, or 'best'"),
        (["classify", "tiny", "cats"], "has no probe"),
    ],
)
def test_what_cannot_be_done_is_one_line(place, capsys, args, line):
    (place / "old.npz").write_bytes(b"mine")
    status, out, error = run(args, capsys)
    assert status == 2
    assert out == ""
    assert error.startswith("igpt: error: ")
    assert line in error
    assert (place / "old.npz").read_bytes() == b"mine"
