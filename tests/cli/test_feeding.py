"""What `igpt pretrain` trains on: crops of originals, mixtures, folded validation, raw bytes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_main import run
from tests.images.pictures import encoded, write_tree
from tests.images.test_live import painted

TINY = """--data.image-size 8 --data.n-colors 5 --model.n-layer 1 --model.n-head 2 --model.n-embd 8
    --train.total-steps 2 --train.batch-size 4 --train.warmup-steps 1 --train.precision fp32
    --train.compile off""".split()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    return str(write_tree(tmp_path / "in", {f"{i:02d}.jpg": painted(i) for i in range(10)}))


@pytest.fixture
def web(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    return str(write_tree(tmp_path / "web", {f"{i}.png": encoded(x) for i, x in enumerate(images)}))


def pretrain(capsys, *args):
    return run(["pretrain", *args, *TINY], capsys)


def test_a_folder_is_cropped_anew_and_mixed_with_another(photos, web, tmp_path, capsys):
    live = [photos, str(tmp_path / "run"), "--data.augment", "imagenet", "--workers", "1"]
    mix = ["--mix", f"0.5:none:{web}"]
    status, out, _ = pretrain(capsys, *live, *mix, "--json")
    assert status == 0
    assert json.loads(out)["step"] == 2
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["valid_fraction"] == 0.1
    assert [(other["weight"], other["augment"]) for other in stored["facts"]["mixed"]] == [
        (0.5, "none")
    ]
    assert pretrain(capsys, *live, *mix, "--resume")[0] == 0
    assert pretrain(capsys, *live, "--resume")[0] == 0  # the run's own mixture stands


def test_folded_validation_and_raw_bytes(photos, tmp_path, capsys):
    place = str(tmp_path / "run")
    status, _, _ = pretrain(
        capsys, photos, place, "--data.fold-validation", "--data.tokens", "raw", "--data.augment",
        "imagenet", "--workers", "1",
    )  # fmt: skip
    assert status == 0
    status, out, _ = run(["evaluate", place, photos, "--split", "valid", "--json"], capsys)
    result = json.loads(out)
    assert status == 0
    assert result["bits_per_dim"] == pytest.approx(result["nats_per_token"] / np.log(2))


def test_stored_tokens_are_made_by_prepare(photos, tmp_path, capsys):
    palette = tmp_path / "p.npy"
    assert (
        run(["palette", photos, str(palette), "--image-size", "8", "--n-colors", "9"], capsys)[0]
        == 0
    )
    command = ["prepare", photos, str(tmp_path / "set"), "--image-size", "8", "--workers", "1"]
    status, out, _ = run([*command, "--tokens", str(palette), "--json"], capsys)
    assert status == 0
    tokens = np.load(json.loads(out)["tokens"])
    assert tokens.shape == (10, 64)
    assert Path(json.loads(out)["tokens"]).parent == tmp_path / "set"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--mix", "web.tar"], "--mix web.tar is not a set to mix in: write WEIGHT:AUGMENT:DATA"),
        (["--mix", "1:none:nowhere"], "there is no data at nowhere"),
        (["--mix", "0.333333333:none:digits"], "have no simple ratio: round them"),
        (["--mix", "1:imagenet:digits"], "digits-8 has no image files to crop anew: set"),
        (["--workers", "-1"], "--workers -1 is not possible: choose 0 for one a core, or more"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(photos, tmp_path, capsys, args, line):
    status, out, err = pretrain(capsys, photos, str(tmp_path / "run"), *args)
    assert (status, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("igpt: error: ")
    assert line in last
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_bytes(painted(3)[:-1]), r"\(blake2b \w{16}, then \w{16}\)"),
        (lambda file: file.rename(file.with_suffix(".moved")), "there is no such file"),
    ],
    ids=["changed", "moved"],
)
def test_originals_that_moved_or_changed_end_before_a_run_begins(
    photos, tmp_path, capsys, change, said
):
    packed = str(tmp_path / "packed")
    assert run(["prepare", photos, packed, "--image-size", "8"], capsys)[0] == 0
    for file in sorted((tmp_path / "in").iterdir()):
        change(file)
    status, _, err = pretrain(
        capsys, packed, str(tmp_path / "run"), "--data.augment", "imagenet", "--workers", "1"
    )
    last = err.strip().splitlines()[-1]
    assert status == 2 and err.count("igpt: error") == 1
    assert re.search(rf"in/\d\d\.jpg, an original of .*packed, .*{said}", last)
    assert not (tmp_path / "run" / "config.json").exists()
