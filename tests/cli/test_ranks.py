"""Commands as two processes of one job: the result of one, written and printed once."""

import json
import os
import subprocess
import sys
import time

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
        ["probe", run, photos, "--precision", "fp32", "--joined", "2", "--attentive", "3"],
        ["probe", run, photos, "--precision", "fp32", "--joined", "2", "--large"],
    ):
        out, _ = shared(trained, *args, "--json")
        (line,) = out.splitlines()
        together, one = json.loads(line), json.loads(alone(*args, "--json", capsys=capsys))
        assert together.keys() == one.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert together[name] == pytest.approx(value, abs=1e-5), name
            if name in ("layer", "by_layer", "finalists", "joined", "vote", "attentive"):
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


@pytest.mark.slow
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


FAILING = """
import os, sys, time
from igpt.cli import main
from igpt.errors import UserError
def fail(args):
    time.sleep(SECONDS[int(os.environ["RANK"])])
    raise UserError(WORDS[int(os.environ["RANK"])])
main._run = fail
main.main()
"""


@pytest.mark.parametrize(
    ("seconds", "words", "said"),
    [
        ("(9, 0, 0)", "('', 'no room', 'no room')", "no room"),
        ("(0, 0, 0)", "('no room; step 3 is saved', 'no room', 'lost')", "no room"),
    ],
)
def test_one_line_says_why_a_job_ends_however_late_its_ranks_meet_the_fault(
    tmp_path, seconds, words, said
):
    script = tmp_path / "failing.py"
    script.write_text(FAILING.replace("SECONDS", seconds).replace("WORDS", words))
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=3", str(script)]
    found = subprocess.run([sys.executable, "-m", *launcher], capture_output=True, text=True)
    lines = [line for line in found.stderr.splitlines() if line.startswith("igpt: error: ")]
    assert len(lines) == 1 and said in lines[0], found.stderr


THREE = ["--train.batch-size", "3", "--train.micro-batch", "1"]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three images of two classes, which is fewer than there are ranks."""
    files = class_files(2)
    del files["b/1.png"]
    return write_tree(tmp_path_factory.mktemp("three"), files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "run", "{data}", "--split", "train", "--json"], None),
        (["embed", "run", "{data}", "--out", "{out}.npz", "--json"], None),
        (["prepare", "{data}", "{out}", "--image-size", "8"], "3 of 4 processes have no images"),
        (["sample", "run", "--n", "2", "--out", "{out}.png"], "4 processes need at least an image"),
        (
            ["finetune", "run", "{photos}", "{out}", "--finetune.batch-size", "3"],
            "finetune.batch_size 3 is less than the 4 processes",
        ),
        (
            ["pretrain", "{photos}", "{out}", *TINY, *THREE],
            "train.batch_size 3 is less than the 4 processes",
        ),
        (
            ["probe", "run", "{data}"],
            "a probe needs some in every split",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_more_ranks_than_images(trained, three, tmp_path, words, said):
    """Either the figures come all the same, or one line says why not; nothing waits for ever."""
    names = {"data": str(three), "photos": str(trained / "photos"), "out": str(tmp_path / "out")}
    words = [word.format(**names) for word in words]
    if words[0] == "sample" and "bert" in (trained / "run" / "config.json").read_text():
        pytest.skip("only ar draws")
    out, err = shared(trained, *words, ranks=4, status=0 if said is None else 2)
    assert said is None or said in err, err
    assert err.count("igpt: error") == (said is not None)
    assert said is not None or len(out.splitlines()) == 1


def test_labels_missing_on_one_ranks_share_are_left_out_as_by_one_process(
    trained, tmp_path, capsys
):
    """The last half of the images has no label: the second rank's share, were it cut before."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, -1], [30, 30, 60])
    np.random.default_rng(1).shuffle(labels[:60])
    np.savez(
        tmp_path / "half.npz",
        images=rng.integers(0, 255, (120, 8, 8, 3), np.uint8),
        labels=labels,
    )
    args = ["probe", str(trained / "run"), str(tmp_path / "half.npz"), "--precision", "fp32"]
    out, err = shared(tmp_path, *args, "--json")
    one, two = json.loads(alone(*args, "--json", capsys=capsys)), json.loads(out)
    assert near(two["by_layer"], one["by_layer"]) and near(two["raw_pixels"], one["raw_pixels"])
    assert two["n_train"] + two["n_valid"] + two["n_test"] == 60
    assert "60 of 120 have none" in err


DYING = """
import os, signal, sys, threading
from igpt.cli.main import main
from igpt.model import gpt
from igpt.images.packed import rows
def dying(real):
    def call(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
    return call if os.environ["RANK"] == "1" else real
gpt.GPT.hidden = dying(gpt.GPT.hidden)
gpt.GPT.forward = dying(gpt.GPT.forward)
for module, name in (WHERE,):
    module = __import__("importlib").import_module(module)
    setattr(module, name, dying(getattr(module, name)))
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["evaluate", "run", "photos"], ("igpt.train.distributed", "in_order")),
        (["probe", "run", "photos"], ("igpt.train.distributed", "in_order")),
        (["embed", "run", "photos", "--out", "{out}.npz"], ("igpt.train.distributed", "joined")),
        (["probe", "run", "photos", "--large"], ("igpt.train.distributed", "in_order")),
        (["embed", "run", "photos", "--out", "{out}.npz"], ("igpt.train.distributed", "in_order")),
        (["finetune", "run", "photos", "{out}", "--finetune.compile", "off"], ("os", "times")),
        (["sample", "run", "--out", "{out}.png"], ("igpt.generate.sample", "sampling")),
        (["prepare", "photos", "{out}", "--image-size", "8"], ("igpt.images.prepare", "prepare")),
    ],
    ids=lambda value: " ".join(value[::3]) if isinstance(value, list) else "",
)
def test_a_rank_that_dies_ends_every_command(trained, tmp_path, words, where):
    """At once and by its number; nothing is written that could be taken for the whole."""
    (tmp_path / "dying.py").write_text(DYING.replace("WHERE", repr(where)))
    words = [word.format(out=tmp_path / "out") for word in words]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "dying.py"), *words],
        capture_output=True,
        text=True,
        cwd=trained,
        timeout=90,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IGPT_CACHE": str(tmp_path / "cache")},
    )
    assert found.returncode != 0
    assert time.monotonic() - began < 30  # after which the launcher kills what does not hear it
    assert "rank      : 1 (local_rank: 1)" in found.stderr or "rank 1" in found.stderr
    for name in ("out.npz", "out.png", "out/manifest.json", "out/result.json"):
        assert not (tmp_path / name).exists()
