"""Issue 2, "Bad input", through the command line: the exact line, status 2, nothing overwritten."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.cli.main import main
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.images.sources.find import KINDS, NAMED
from igpt.images.sources.names import suffixes
from igpt.train.folder import read_run

SMALL = """--data.image-size 8 --data.n-colors 8 --model.n-layer 1 --model.n-head 1 --model.n-embd 8
    --train.total-steps 2 --train.batch-size 2 --train.compile off --train.precision fp32""".split()


def run(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    _, err = capsys.readouterr()
    return stop.value.code, err.splitlines()[-1] if err else ""


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with images, an empty folder, one of text, and a cut image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(20):
        save(tmp_path / "photos" / f"{i:02}.png", rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    whole = (tmp_path / "photos" / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


KNOWN = f"names: {', '.join(NAMED)}, or the path of {KINDS}"
NO_IMAGES = f"holds no images ({' '.join(sorted(suffixes()))})"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("/no/such/place", f"there is no data at /no/such/place: {KNOWN}"),
        ("cifar11", "there is no data at cifar11: did you mean cifar10?"),
        ("empty", f"empty {NO_IMAGES}: check the path"),
        ("text", f"text {NO_IMAGES}; files that are no images: 1 .txt: check the path"),
        ("cut.png", "cut.png is a single image: pass the folder that holds it"),
        ("text/notes.txt", f"text/notes.txt is of a kind that is not read: pass {KINDS}"),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "palette"])
def test_data_that_is_none_is_one_line_and_starts_nothing(place, command, data, line, capsys):
    target = {"pretrain": ["new", *SMALL], "palette": ["new.npy", "--image-size", "8"]}[command]
    assert run([command, data, *target], capsys) == (2, f"igpt: error: {line}")
    assert not (place / "new").exists()
    assert not (place / "new.npy").exists()


def test_a_resolution_that_the_images_cannot_give(place, capsys):
    status, line = run(["pretrain", "photos", "new", *SMALL, "--data.image-size", "16"], capsys)
    assert status == 2
    assert line.startswith("igpt: error: 20 of 20 images cannot be used (20 ")
    assert "16" in line


def test_a_resolution_that_a_packed_set_cannot_give(place, capsys):
    run(["prepare", "photos", "packed", "--image-size", "8"], capsys)
    status, line = run(["pretrain", "packed", "new", *SMALL, "--data.image-size", "9"], capsys)
    assert (status, line) == (
        2,
        "igpt: error: packed is packed at 8 pixels, too small for data.image_size 9: "
        "choose at most 8",
    )


@pytest.mark.parametrize("size", [0, 257])
def test_a_resolution_that_no_model_has(place, size, capsys):
    status, line = run(["pretrain", "photos", "new", "--data.image-size", size], capsys)
    assert (status, line) == (
        2,
        f"igpt: error: data.image_size is {size}: choose from 1 to 256 pixels",
    )


def test_images_of_every_mode_train_and_a_broken_one_is_left_out(place, capsys):
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    save(place / "mixed" / "grey.png", shades)
    save(place / "mixed" / "deep.png", shades.astype(np.uint16) * 257)
    save(place / "mixed" / "alpha.png", rng.integers(0, 256, (9, 9, 4), dtype=np.uint8))
    Image.fromarray(shades).convert("P").save(place / "mixed" / "palette.png")
    Image.fromarray(shades).convert("CMYK").save(place / "mixed" / "inks.jpg")
    for i in range(12):
        save(place / "mixed" / f"{i}.png", rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    (place / "mixed" / "broken.png").write_bytes((place / "cut.png").read_bytes())
    assert run(["pretrain", "mixed", "new", *SMALL], capsys)[0] == 0
    (packed,) = (place / "cache" / "packed").iterdir()
    assert "broken.png" in (packed / "rejects.csv").read_text()
    held = PackedSet.open(packed)
    assert sum(held.n(split) for split in ("train", "valid", "test")) == 17


def test_an_output_folder_that_holds_a_run_is_left_as_it_is(place, capsys):
    assert run(["pretrain", "photos", "run", *SMALL], capsys)[0] == 0
    before = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    assert run(["pretrain", "photos", "run", *SMALL], capsys) == (
        2,
        "igpt: error: run already holds a run: add --resume to go on with it, "
        "or choose another folder",
    )
    assert {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()} == before


def test_an_output_folder_that_holds_something_else_is_left_as_it_is(place, capsys):
    assert run(["pretrain", "photos", "text", *SMALL], capsys) == (
        2,
        "igpt: error: text is not empty (notes.txt, ...): choose another folder",
    )
    assert [p.name for p in (place / "text").iterdir() if p.name != "lock"] == ["notes.txt"]
    assert run(["pretrain", "photos", "cut.png", *SMALL], capsys) == (
        2,
        "igpt: error: cannot write cut.png: a file stands in the way: choose another place",
    )


def test_an_unknown_key_in_a_runs_config_is_named(place, capsys):
    assert run(["pretrain", "photos", "run", *SMALL], capsys)[0] == 0
    path = place / "run" / "config.json"
    document = json.loads(path.read_text())
    document["train"]["learning_rate"] = 1.0
    path.write_text(json.dumps(document))
    status, line = run(["pretrain", "photos", "run", "--resume"], capsys)
    assert status == 2
    assert line.startswith("igpt: error: run/config.json: unknown key 'train.learning_rate': ")
    with pytest.raises(UserError, match="unknown key"):
        read_run(place / "run")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["complete", "run", "cut.png"],
            "cannot read cut.png: damaged or cut off: check or replace the file",
        ),
        (
            ["complete", "run", "nowhere.png"],
            "nowhere.png is neither a file nor a folder: check the path",
        ),
        (["report", "empty"], "empty holds no run (config.json is missing): check the path"),
        (["sample", "empty"], "empty holds no model (config.json is missing): check the path"),
    ],
)
def test_wrong_images_and_models_are_one_line(place, args, line, capsys):
    assert run(["pretrain", "photos", "run", *SMALL], capsys)[0] == 0
    assert run(args, capsys) == (2, f"igpt: error: {line}")
    assert not list(Path().glob("*.png.part"))


@pytest.mark.slow
def test_ctrl_c_ends_a_training_with_a_checkpoint_and_status_130(place):
    args = ["photos", "run", *SMALL, "--train.total-steps", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "igpt", "pretrain", *args],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = place / "run" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "which is saved: go on with --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list((place / "run" / "checkpoints").iterdir())
