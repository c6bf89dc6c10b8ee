"""Images that a model was trained on are told from others, wherever they lie since."""

import numpy as np
import pytest
from PIL import Image

import igpt
from igpt.errors import UserError
from igpt.images.packed.seen import fingerprints, line_of_seen, n_seen, read_seen, united
from igpt.jobs.opening import counts_of_seen, open_for
from tests.train.making import tiny

SHAPE = tiny().to_dict()["model"]
STEPS = tiny(total_steps=1, warmup_steps=0).to_dict()["train"]


def test_every_image_counts_that_was_seen():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    seen = united(fingerprints(images[:5]), None, fingerprints(images[3:6]))
    assert len(seen) == 6
    assert n_seen(images, seen) == 6
    assert n_seen(images[6:], seen) == 0
    assert n_seen(images, seen[:0]) == 0
    assert line_of_seen([("valid", 1, 2), ("test", 3, 4)]) == "1 of 2 valid and 3 of 4 test images"


def photos(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 30 photos."""
    base = tmp_path_factory.mktemp("seen")
    photos(base / "photos", range(30))
    data = {"image_size": 8, "n_colors": 8, "valid_fraction": 0.2}
    return igpt.pretrain(base / "photos", base / "run", data=data, model=SHAPE, train=STEPS).folder


def told(model, data, capsys):
    open_for(model, str(data))
    return [line for line in capsys.readouterr().err.splitlines() if "was trained on" in line]


def test_photos_that_came_and_went_do_not_judge_in_silence(run, tmp_path, capsys):
    model = igpt.load(run)
    assert told(model, run.parent / "photos", capsys) == []
    photos(tmp_path / "more", range(45))
    (line,) = told(model, tmp_path / "more", capsys)
    assert "valid images of" in line and "figures on them are too good" in line
    copied = model.save(tmp_path / "copy")
    assert told(igpt.load(copied), tmp_path / "more", capsys) == [line]
    photos(tmp_path / "others", range(100, 130))
    assert told(model, tmp_path / "others", capsys) == []


def test_photos_moved_from_train_to_test_are_told(run, tmp_path, capsys):
    photos(tmp_path / "d" / "train" / "a", range(100, 110))
    photos(tmp_path / "d" / "test" / "a", range(30))
    (line,) = told(igpt.load(run), tmp_path / "d", capsys)
    assert "of 30 test images" in line


def test_a_run_from_other_weights_has_seen_what_they_saw(run, tmp_path, capsys):
    photos(tmp_path / "new", range(100, 120))
    more = igpt.pretrain(
        tmp_path / "new",
        tmp_path / "b",
        init_from=run,
        data={"image_size": 8, "n_colors": 8},
        model=SHAPE,
        train=STEPS,
    )
    seen, before = read_seen(more.folder), read_seen(run)
    assert seen is not None and before is not None
    assert set(before) < set(seen)
    photos(tmp_path / "mixed", range(20, 60))
    data = igpt.images.prepare.open_data(str(tmp_path / "mixed"), image_size=8)
    assert counts_of_seen(igpt.load(more.folder), data)


def test_a_damaged_file_says_what_to_do(tmp_path):
    assert read_seen(tmp_path) is None
    (tmp_path / "seen.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"seen.npy is damaged .*: delete it"):
        read_seen(tmp_path)
    np.save(tmp_path / "seen.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"holds no fingerprints"):
        read_seen(tmp_path)
