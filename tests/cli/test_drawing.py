"""`igpt sample` and `igpt complete`, from the command line to the files."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_main import run
from tests.networks import pixel_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixel_model().save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save("a.png")
    Image.fromarray(np.full((9, 9), 70, np.uint8)).save("b.png")
    return tmp_path


def test_sample_writes_picture_animation_and_tokens(folder, place, capsys):
    command = ["sample", str(folder), "--n", "5", "--gif", "a.gif", "--tokens", "t.npz"]
    status, out, _ = run(command, capsys)
    assert status == 0
    assert "samples.png" in out and "a.gif" in out and "t.npz" in out
    tokens = np.load("t.npz")["tokens"]
    assert tokens.shape == (5, 64)
    with Image.open("samples.png") as picture, Image.open("a.gif") as movie:
        assert picture.size == movie.size == (3 * 34 + 2, 2 * 34 + 2)
        assert movie.n_frames > 30


def test_sample_gives_the_same_images_alone_and_in_python(folder, place, capsys):
    run(["sample", str(folder), "--n", "3", "--seed", "4", "--tokens", "t.npz"], capsys)
    model = pixel_model()
    np.testing.assert_array_equal(
        model.decode(np.load("t.npz")["tokens"])[:2], model.sample(2, seed=4)
    )


def test_sample_reports_json(folder, place, capsys):
    _, out, _ = run(["sample", str(folder), "--n", "1", "--top-k", "3", "--json"], capsys)
    said = json.loads(out)
    assert said["picture"] == "samples.png" and said["top_k"] == 3 and said["seconds"] >= 0


def test_complete_writes_a_sheet_and_keeps_what_was_given(folder, place, capsys):
    command = ["complete", str(folder), "a.png", "b.png", "--n", "3", "--tokens", "t.npz"]
    status, _, _ = run([*command, "--gif", "c.webp"], capsys)
    assert status == 0
    saved = np.load("t.npz")
    assert saved["tokens"].shape == (2, 3, 64)
    np.testing.assert_array_equal(saved["keep"], np.arange(64) < 32)
    given = pixel_model().encode(["a.png", "b.png"])
    np.testing.assert_array_equal(saved["tokens"][:, 1, :32], given[:, :32])
    with Image.open("completions.png") as sheet:
        assert sheet.height == 2 * 196 + 4


def test_complete_draws_what_is_white_in_a_mask(folder, place, capsys):
    mask = np.zeros((30, 50), np.uint8)
    mask[:, 25:] = 255
    Image.fromarray(mask).save("mask.png")
    run(["complete", str(folder), "a.png", "--mask", "mask.png", "--tokens", "t.npz"], capsys)
    keep = np.load("t.npz")["keep"].reshape(8, 8)
    assert keep[:, :4].all() and not keep[:, 4:].any()


def test_complete_takes_a_folder_of_images(folder, place, capsys):
    _, out, _ = run(["complete", str(folder), ".", "--n", "1", "--json"], capsys)
    assert json.loads(out)["images"] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["sample", "M", "--out", "a.jpg"], "--out a.jpg: choose a name that ends in .png"),
        (
            ["sample", "M", "--gif", "a.mp4"],
            "--gif a.mp4: choose a name that ends in .gif or .webp",
        ),
        (
            ["sample", "M", "--out", "a.png"],
            "--out a.png exists: choose another name, or replace it",
        ),
        (["sample", "M", "--top-k", "0"], "top_k is 0: it must be at least 1"),
        (["sample", "M", "--temperature", "-1"], "temperature is -1.0: it must not be negative"),
        (["sample", "M", "--n", "0"], "n is 0: ask for at least 1 image"),
        (["sample", "M", "--n", "9999"], "--n is 9999: at most 4096 fit into one picture"),
        (["sample", "M", "--enlarge", "0"], "--enlarge is 0: choose from 1 to 64"),
        (["complete", "M"], "no images are given: name image files or a folder of them"),
        (["complete", "M", "none.png"], "cannot read none.png: there is no such file"),
        (["complete", "M", "empty"], "empty holds no images: name image files or a folder"),
        (["complete", "M", "a.png", "--keep-rows", "1"], "keep_rows 1.0 keeps 8 of 8 rows"),
        (["complete", "M", "a.png", "--mask", "black.png"], "the mask keeps every pixel"),
        (["complete", "M", "a.png", "--mask", "white.png"], "the mask keeps no pixel"),
        (
            ["complete", "M", "a.png", "--mask", "a.png", "--keep-rows", "0.5"],
            "both --mask and --keep-rows are given: choose one",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(folder, place, capsys, args, line):
    (place / "empty").mkdir()
    for name, level in (("black.png", 0), ("white.png", 255)):
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(name)
    status, _, err = run([str(folder) if a == "M" else a for a in args], capsys)
    assert status == 2
    assert line in err
    assert len([x for x in err.splitlines() if x.startswith("igpt: error")]) == 1


def test_sampling_from_a_bert_model_is_refused_by_name(place, capsys):
    folder = pixel_model(objective="bert").save(place / "bert")
    status, _, err = run(["sample", str(folder)], capsys)
    assert status == 2 and "trained with the bert objective" in err


def test_without_a_compiler_it_is_said_and_images_are_drawn(folder, place, capsys, monkeypatch):
    from igpt.model import native

    monkeypatch.setattr(native, "library", lambda: None)
    status, _, err = run(["sample", str(folder), "--n", "2"], capsys)
    assert status == 0 and "no C++ compiler" in err


def test_force_replaces_a_file(folder, place, capsys):
    run(["sample", str(folder), "--n", "1"], capsys)
    status, _, _ = run(["sample", str(folder), "--n", "2", "--force"], capsys)
    assert status == 0
