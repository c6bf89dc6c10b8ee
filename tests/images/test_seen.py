"""A run knows the images that it was trained on when they come back as validation or test."""

import numpy as np
import pytest

from igpt.cli.main import main
from igpt.images.packed.seen import NAME, hashes
from tests.images.pictures import class_files, write_tree

TINY = """--data.image-size 8 --data.n-colors 16 --model.n-layer 1 --model.n-head 1
    --model.n-embd 16 --train.total-steps 1 --train.batch-size 4 --train.micro-batch 4
    --train.compile off --train.precision fp32""".split()


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_files_that_are_added_put_no_training_image_into_validation_unsaid(tmp_path, capsys):
    photos, folder = tmp_path / "photos", tmp_path / "run"
    files = class_files(60)
    names = sorted(files)
    write_tree(photos, {name: files[name] for name in names[::2]})
    assert run("pretrain", photos, folder, *TINY) == 0
    assert len(np.load(folder / NAME)) > 0
    capsys.readouterr()
    assert run("evaluate", folder, photos) == 0
    assert "trained on" not in capsys.readouterr().err
    write_tree(photos, {name: files[name] for name in names[1::2]})
    assert run("evaluate", folder, photos) == 0
    assert "are among those that this model was trained on" in capsys.readouterr().err


def test_a_hash_is_of_the_pixels_alone():
    one = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    other = one.copy()
    other[2, 0, 0, 0] ^= 1
    assert (hashes(one) == hashes(other)).tolist() == [True, True, False, True, True]
