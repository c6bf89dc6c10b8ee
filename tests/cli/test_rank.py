"""`igpt rank`, from the command line to the picture of maps."""

import json

import numpy as np
import pytest
from PIL import Image

from igpt.generate.pictures import TITLE_PX
from tests.cli.test_main import run
from tests.networks import pixel_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixel_model().save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (30, 50, 3)), ("b.jpg", (9, 9, 3)), ("deep/c.png", (8, 8, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(f"photos/{name}")
    return tmp_path


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_images_come_odd_ones_first_with_the_models_own_nats(objective, place, capsys):
    model = pixel_model(objective=objective)
    folder = model.save(place / "model")
    status, out, _ = run(["rank", str(folder), "photos", "--json"], capsys)
    said = json.loads(out)
    assert status == 0 and said["left_out"] == []
    paths = [row["path"] for row in said["images"]]
    nats = [row["nats_per_token"] for row in said["images"]]
    assert set(paths) == {"photos/a.png", "photos/b.jpg", "photos/deep/c.png"}
    assert nats == sorted(nats, reverse=True)
    np.testing.assert_allclose(nats, model.nats(paths), rtol=1e-4)


def test_the_oddest_are_printed_and_the_rest_counted(folder, place, capsys):
    _, out, err = run(["rank", str(folder), "photos", "--top", "2"], capsys)
    lines = out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("1  ") and lines[1].startswith("2  ")
    assert "1 more: --top shows more" in err


def test_maps_show_each_image_as_seen_and_its_surprise(folder, place, capsys):
    command = ["rank", str(folder), "photos", "--top", "2", "--maps", "odd.png", "--json"]
    status, out, _ = run(command, capsys)
    said = json.loads(out)
    assert status == 0 and said["maps"] == "odd.png"
    with Image.open("odd.png") as picture:
        found = np.asarray(picture)[TITLE_PX:]
    cell, gap = 192, 4
    assert found.shape[0] == 2 * (cell + gap) + gap
    first_row = found[gap + 12 : gap + cell : 24]  # the middle of each enlarged pixel
    seen = first_row[:, -2 * (cell + gap) + 12 : -(cell + gap) - gap : 24]
    heat = first_row[:, -(cell + gap) + 12 : -gap : 24]
    model, oddest = pixel_model(), said["images"][0]["path"]
    np.testing.assert_array_equal(seen, model.decode(model.encode(oddest))[0])
    brightness, nats = heat.astype(int).sum(-1), model.surprise(oddest)[0]
    order = nats.reshape(-1).argsort()
    assert (np.diff(brightness.reshape(-1)[order]) >= -3).all()  # equal steps of the colour map
    both = model.surprise([row["path"] for row in said["images"][:2]])
    assert said["brightest_nats_per_pixel"] == pytest.approx(np.percentile(both, 99), rel=1e-3)


def test_a_damaged_image_is_left_out_and_named(folder, place, capsys):
    (place / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    command = ["rank", str(folder), "photos", "--json"]
    status, out, err = run(command, capsys)
    assert status == 0
    reason = "not an image, or of a kind that is not read"
    assert json.loads(out)["left_out"] == [{"path": "photos/broken.png", "reason": reason}]
    assert f"left out: photos/broken.png: {reason}" in err
    status, _, err = run([*command, "--max-bad", "0"], capsys)
    assert status == 2
    assert "images cannot be used" in err.splitlines()[-1]


def test_an_image_given_twice_is_listed_twice(folder, place, capsys):
    name = str(next((place / "photos").glob("*.png")))
    _, out, _ = run(["rank", str(folder), name, name, "--json"], capsys)
    assert [image["path"] for image in json.loads(out)["images"]] == [name, name]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["rank", "M"], "no images are given: name image files or a folder of them"),
        (["rank", "M", "none"], "none is neither a file nor a folder: check the path"),
        (["rank", "M", "empty"], "empty holds no images: name image files or a folder of them"),
        (["rank", "M", "text.png"], "cannot read text.png: not an image"),
        (["rank", "M", "photos", "--top", "0"], "--top is 0: ask for at least 1 image"),
        (
            ["rank", "M", "photos", "--maps", "a.png", "--top", "65"],
            "--top is 65: at most 64 fit on one picture of --maps",
        ),
        (
            ["rank", "M", "photos", "--maps", "a.jpg"],
            "--maps a.jpg: choose a name that ends in .png",
        ),
        (
            ["rank", "M", "photos", "--maps", "old.png"],
            "--maps old.png exists: choose another name, or replace it with --force",
        ),
        (["rank", "nothing", "photos"], "nothing is neither a run nor a model folder"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(folder, place, capsys, args, line):
    (place / "empty").mkdir()
    (place / "text.png").write_text("no picture")
    (place / "old.png").write_text("")
    status, _, err = run([str(folder) if a == "M" else a for a in args], capsys)
    assert status == 2
    assert line in err
    assert len([x for x in err.splitlines() if x.startswith("igpt: error")]) == 1
