"""Commands as two processes of one job: the result of one, written and printed once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from igpt.cli.main import main
from igpt.images.packed.read import PackedSet
from tests.images.pictures import class_files, write_tree

TINY = (
    "--data.image-size 8 --data.n-colors 16 --model.n-layer 2 --model.n-head 2 --model.n-embd 16 "
    "--train.batch-size 4 --train.micro-batch 4 --train.compile off --train.precision fp32 "
    "--train.total-steps 2 --train.valid-images 4"
).split()


def alone(*args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return out


def shared(folder, *args, ranks=2, status=0):
    """Standard output and error of a command as several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    found = subprocess.run(
        [sys.executable, *launcher, "-m", "--", "igpt", *args],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (found.returncode == 0) == (status == 0), found.stderr
    return found.stdout, found.stderr


@pytest.fixture(scope="module", params=["ar", pytest.param("bert", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """A folder with labelled `photos` and a model `run` of them."""
    folder = tmp_path_factory.mktemp("ranks")
    write_tree(folder / "photos", class_files(60))
    with pytest.raises(SystemExit) as stop:
        names = [str(folder / name) for name in ("photos", "run")]
        main(["pretrain", *names, *TINY, "--train.objective", request.param])
    assert stop.value.code == 0
    return folder


def test_evaluate_and_probe_give_the_figures_of_one_process(trained, capsys):
    run, photos = str(trained / "run"), str(trained / "photos")
    for args in (
        ["evaluate", run, photos, "--split", "train", "--precision", "fp32"],
        ["probe", run, photos, "--precision", "fp32", "--joined", "2"],
        ["probe", run, photos, "--precision", "fp32", "--joined", "2", "--large"],
    ):
        out, _ = shared(trained, *args, "--json")
        (line,) = out.splitlines()
        together, one = json.loads(line), json.loads(alone(*args, "--json", capsys=capsys))
        assert together.keys() == one.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert together[name] == pytest.approx(value, abs=1e-5), name
            if name in ("layer", "by_layer", "finalists", "joined", "vote"):
                assert near(together[name], value), name


def near(one, other):
    """Plain values that are the same, numbers to 1e-5."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return one == pytest.approx(other, abs=1e-5)


def test_embed_writes_what_one_process_writes(trained, tmp_path, capsys):
    """With a file that cannot be read in each process's share."""
    bad = [trained / "photos" / name for name in ("bad-a.png", "zz-bad.png")]
    photos = [str(path) for path in sorted((trained / "photos").rglob("*.*"))[:40]]
    for path in bad:
        path.write_bytes(b"no image")
    args = ["embed", str(trained / "run"), str(bad[0]), *photos, str(bad[1])]
    args += ["--layer", "1", "--json", "--out"]
    out, err = shared(tmp_path, *args, "two.npz")
    one = json.loads(alone(*args, str(tmp_path / "one.npz"), capsys=capsys))
    two = json.loads(out)
    assert two["left_out"] == one["left_out"] and len(one["left_out"]) == 2
    assert err.count("left out:") == 2
    with np.load(tmp_path / "one.npz") as a, np.load(tmp_path / "two.npz") as b:
        assert len(a["path"]) == 40
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
    for path in bad:
        path.unlink()


def test_prepare_takes_one_part_a_process(trained, tmp_path, capsys):
    photos = str(trained / "photos")
    out, _ = shared(tmp_path, "prepare", photos, "two", "--image-size", "8", "--json")
    alone("prepare", photos, str(tmp_path / "one"), "--image-size", "8", capsys=capsys)
    assert len(out.splitlines()) == 1
    one, two = PackedSet.open(tmp_path / "one"), PackedSet.open(tmp_path / "two")
    assert [path.name for path in (tmp_path / "two").glob("part-*")] == []
    images = [np.sort(s.images_at(np.arange(120))[:].reshape(120, -1), axis=0) for s in (one, two)]
    assert np.array_equal(*images)
    _, err = shared(
        tmp_path, "prepare", photos, "x", "--image-size", "8", "--part", "1/2", status=2
    )
    assert "--part is the rank under torchrun" in err


def test_sample_draws_what_one_process_draws(trained, tmp_path, capsys):
    run = str(trained / "run")
    args = ["sample", run, "--n", "5", "--precision", "fp32"]
    if "bert" in (trained / "run" / "config.json").read_text():
        pytest.skip("only ar draws")
    shared(tmp_path, *args, "--out", "two.png", "--tokens", "two.npz", "--gif", "two.gif")
    alone(
        *args,
        *("--out", str(tmp_path / "one.png"), "--tokens", str(tmp_path / "one.npz")),
        capsys=capsys,
    )
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in one.files)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "two.gif").exists()


def test_what_every_process_meets_is_said_once(trained):
    _, err = shared(trained, "evaluate", "run", "nowhere", status=2)
    assert err.count("igpt: error:") == 1
    assert "nowhere" in err
