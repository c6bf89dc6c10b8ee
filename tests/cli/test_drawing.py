"""`igpt sample` and `igpt complete`, from the command line to the files."""

import json

import numpy as np
import pytest
from PIL import Image

from igpt.cli.outputs import Outputs
from igpt.generate.pictures import TITLE_PX
from tests.cli.test_main import run
from tests.images.pictures import png_claiming
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


def arrays():
    """What `--tokens t.npz` wrote."""
    with np.load("t.npz") as file:
        return dict(file)


def test_sample_writes_picture_animation_and_tokens(folder, place, capsys):
    command = ["sample", str(folder), "--n", "5", "--gif", "a.gif", "--tokens", "t.npz"]
    status, out, _ = run(command, capsys)
    assert status == 0
    assert "samples.png" in out and "a.gif" in out and "t.npz" in out
    tokens = arrays()["tokens"]
    assert tokens.shape == (5, 64)
    with Image.open("samples.png") as picture, Image.open("a.gif") as movie:
        assert picture.size == movie.size == (3 * 98 + 2, 2 * 98 + 2)
        assert movie.n_frames > 30


def test_sample_gives_the_same_images_alone_and_in_python(folder, place, capsys):
    run(["sample", str(folder), "--n", "3", "--seed", "4", "--tokens", "t.npz"], capsys)
    model = pixel_model()
    np.testing.assert_array_equal(model.decode(arrays()["tokens"])[:2], model.sample(2, seed=4))


def test_sample_reports_json(folder, place, capsys):
    _, out, _ = run(["sample", str(folder), "--n", "1", "--top-k", "3", "--json"], capsys)
    said = json.loads(out)
    assert said["picture"] == "samples.png" and said["top_k"] == 3 and said["seconds"] >= 0


def test_complete_writes_a_sheet_and_keeps_what_was_given(folder, place, capsys):
    command = ["complete", str(folder), "a.png", "b.png", "--n", "3", "--tokens", "t.npz"]
    status, _, _ = run([*command, "--gif", "c.webp"], capsys)
    assert status == 0
    saved = arrays()
    assert saved["tokens"].shape == (2, 3, 64)
    np.testing.assert_array_equal(saved["keep"], np.arange(64) < 32)
    given = pixel_model().encode(["a.png", "b.png"])
    np.testing.assert_array_equal(saved["tokens"][:, 1, :32], given[:, :32])
    with Image.open("completions.png") as sheet:
        assert sheet.height == TITLE_PX + 2 * 196 + 4


def test_complete_draws_what_is_white_in_a_mask(folder, place, capsys):
    mask = np.zeros((30, 50), np.uint8)
    mask[:, 25:] = 255
    Image.fromarray(mask).save("mask.png")
    run(["complete", str(folder), "a.png", "--mask", "mask.png", "--tokens", "t.npz"], capsys)
    keep = arrays()["keep"].reshape(8, 8)
    assert keep[:, :4].all() and not keep[:, 4:].any()


def test_complete_takes_a_folder_of_images_with_all_folders_below(folder, place, capsys):
    (place / "größer" / "noch tiefer").mkdir(parents=True)
    (place / "b.png").rename(place / "größer" / "noch tiefer" / "b c.png")
    _, out, _ = run(["complete", str(folder), ".", "--n", "1", "--json"], capsys)
    assert json.loads(out)["images"] == ["a.png", "größer/noch tiefer/b c.png"]


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
        (
            ["sample", "M", "--n", "4096", "--enlarge", "64"],
            "samples.png would have 1074 million pixels: draw fewer images",
        ),
        (
            ["sample", "M", "--n", "1000", "--enlarge", "32", "--gif", "a.gif"],
            "a.gif would have 66 million pixels: draw fewer images",
        ),
        (
            ["complete", "M", "a.png", "--n", "100000"],
            "completions.png would have 3687 million pixels",
        ),
        (["sample", "M", "--top-p", "0"], "top_p is 0.0: choose a share above 0"),
        (["sample", "M", "--temperature", "nan"], "temperature is nan: it must be a finite number"),
        (["complete", "M", "text.png"], "cannot read text.png: not an image"),
        (
            ["complete", "M", "huge.png"],
            "cannot read huge.png: 40000 x 40000 pixels take 6.0 GiB to decode",
        ),
        (["complete", "M", "a.png", "--mask", "text.png"], "cannot read text.png: not an image"),
        (["complete", "M", "a.png", "--n", "0"], "n is 0: ask for at least 1 completion"),
        (["complete", "M"], "no images are given: name image files or a folder of them"),
        (["complete", "M", "none.png"], "none.png is neither a file nor a folder"),
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
    (place / "text.png").write_text("no picture")
    (place / "huge.png").write_bytes(png_claiming(40_000, 40_000))
    for name, level in (("black.png", 0), ("white.png", 255)):
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(name)
    status, _, err = run([str(folder) if a == "M" else a for a in args], capsys)
    assert status == 2
    assert line in err
    assert len([x for x in err.splitlines() if x.startswith("igpt: error")]) == 1


def test_animated_and_transparent_files_are_completed(folder, place, capsys):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save("clear.png")
    command = ["complete", str(folder), "moving.gif", "clear.png", "--tokens", "t.npz"]
    status, _, _ = run(command, capsys)
    assert status == 0
    model = pixel_model()
    red, white = (np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (255, 255, 255)))
    np.testing.assert_array_equal(arrays()["tokens"][:, 0, :32], model.encode([red, white])[:, :32])


def test_a_bert_model_completes_any_mask_from_the_command_line(place, capsys):
    bert = pixel_model(objective="bert").save(place / "bert")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:7] = 255
    Image.fromarray(mask).save("mask.png")
    command = ["complete", str(bert), "a.png", "--mask", "mask.png", "--n", "2", "--gif", "a.gif"]
    status, _, _ = run([*command, "--tokens", "t.npz"], capsys)
    assert status == 0
    np.testing.assert_array_equal(arrays()["keep"].reshape(8, 8), mask == 0)
    with Image.open("a.gif") as movie:
        assert movie.n_frames > 10  # rounds


def test_sampling_from_a_bert_model_is_refused_by_name(place, capsys):
    folder = pixel_model(objective="bert").save(place / "bert")
    status, _, err = run(["sample", str(folder)], capsys)
    assert status == 2 and "trained with the bert objective" in err


def test_without_a_compiler_it_is_said_and_images_are_drawn(folder, place, capsys, monkeypatch):
    from igpt.model import native

    monkeypatch.setattr(native, "library", lambda name: None)
    monkeypatch.setattr(native, "missing", lambda name: "no C++ compiler is found")
    status, _, err = run(["sample", str(folder), "--n", "2"], capsys)
    assert status == 0 and "several times as long: no C++ compiler" in err


def test_force_replaces_a_file(folder, place, capsys):
    run(["sample", str(folder), "--n", "1"], capsys)
    status, _, _ = run(["sample", str(folder), "--n", "2", "--force"], capsys)
    assert status == 0


@pytest.mark.parametrize(
    ("n", "gif", "expected"), [(0, None, 12), (64, None, 12), (2000, "a.gif", 5), (9**9, None, 1)]
)
def test_images_are_shown_as_large_as_can_be_held(place, n, gif, expected):
    outputs = Outputs.checked(out="new.png", gif=gif, tokens=None, force=True)
    assert outputs.enlargement(n, 8) == expected
