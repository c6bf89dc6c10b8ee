"""The end is tried at the beginning: every command that writes, every place that cannot be."""

import shlex
from pathlib import Path

import numpy as np
import pytest

import igpt.jobs.finetune
import igpt.jobs.probe  # noqa: F401 - before `place` exchanges what they import
from igpt.cli.main import COMMANDS
from igpt.files import write_bytes
from igpt.images.grid import to_png_bytes
from tests.cli.test_main import run
from tests.networks import pixel_model

# How each command that writes is told where; {} is the place. What follows it is the ending.
WRITERS = {
    "demo": [("demo --out {}", "")],
    "prepare": [("prepare DATA {}", "")],
    "palette": [("palette DATA {}", ".npy")],
    "pretrain": [("pretrain DATA {}", "")],
    "finetune": [("finetune MODEL DATA --out {}", "")],
    "embed": [("embed MODEL DATA --out {}", ".npz"), ("embed MODEL DATA --out {}", ".parquet")],
    "rank": [("rank MODEL DATA --maps {}", ".png")],
    "sample": [
        ("sample MODEL --out {}", ".png"),
        ("sample MODEL --gif {}", ".gif"),
        ("sample MODEL --tokens {}", ".npz"),
    ],
    "complete": [
        ("complete MODEL PICTURE --out {}", ".png"),
        ("complete MODEL PICTURE --gif {}", ".webp"),
        ("complete MODEL PICTURE --tokens {}", ".npz"),
    ],
    "bench": [("bench start --out {}", ".json")],
    "convert": [("convert MODEL {}", "")],
    "push": [("push MODEL me/x --dry-run {}", "")],
    "pull": [("pull me/x {}", "")],
}
# What writes nothing, or only beside a run or a model that is given.
OTHERS = {"info", "evaluate", "probe", "lowdata", "classify", "report", "serve", "cache"}
LINES = [(line, ending) for lines in WRITERS.values() for line, ending in lines]
SITUATIONS = {
    "a file in the way": lambda p: p / "notes.txt" / "a",
    "a file far above": lambda p: p / "notes.txt" / "a" / "b" / "c",
    "a name that is too long": lambda p: p / ("x" * 300),
    "a parent that is too long": lambda p: p / ("x" * 300) / "a",
    "nobody may write there": lambda p: Path("/proc/igpt") / "a",
    "a link to itself": lambda p: p / "loop" / "a",
}


def test_every_command_is_in_the_table():
    assert set(COMMANDS) - OTHERS == set(WRITERS)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")

    def work(*_args, **_kwargs):
        raise AssertionError("work began before the place was tried")

    for name in ("igpt.loading.load", "igpt.jobs.opening.load", "igpt.images.prepare.open_data",
                 "igpt.images.sources.find.open_source",
                 "igpt.loading.pull"):  # fmt: skip
        monkeypatch.setattr(name, work)
    return tmp_path


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("line", "ending"), LINES)
def test_a_place_that_cannot_be_is_found_before_the_work(place, capsys, line, ending, situation):
    target = f"{SITUATIONS[situation](place)}{ending}"
    args = [word.replace("{}", target) for word in line.split()]
    before = sorted(place.rglob("*"))
    status, out, err = run(args, capsys)
    assert (status, out) == (2, ""), err
    assert err.startswith("igpt: error: ") and err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
    assert (place / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("line", "ending"), LINES)
def test_an_empty_name_is_no_place(place, capsys, line, ending):
    status, _, err = run([word.replace("{}", "") for word in line.split()], capsys)
    assert status == 2 and err.count("\n") == 1


@pytest.mark.parametrize(("line", "ending"), [pair for pair in LINES if pair[1]])
def test_an_ending_of_another_format_is_refused(place, capsys, line, ending):
    status, _, err = run([word.replace("{}", "a.doc") for word in line.split()], capsys)
    assert status == 2 and "choose a name that ends in" in err and ending in err


def test_a_name_as_long_as_the_disk_takes_and_capitals_are_written(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    pixel_model().save(tmp_path / "m")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    long = "x" * 251 + ".png"
    assert run(["sample", "m", "--n", "1", "--out", f"new/{long}"], capsys)[0] == 0
    assert (tmp_path / "new" / long).is_file()
    assert run(["embed", "m", "a.png", "--out", "F.NPZ"], capsys)[0] == 0
    assert np.load("F.NPZ")["vector"].shape == (1, 16)


NEED_ROOM = (
    "prepare DATA packed --image-size 8",
    "pretrain DATA run --data.image-size 8 --data.n-colors 4 --model.n-embd 64",
    "finetune MODEL DATA tuned",
    "embed MODEL DATA/a --out v.npz",
    "probe MODEL DATA --large",
)


@pytest.mark.parametrize("line", NEED_ROOM)
def test_a_disk_without_room_is_found_before_the_work(tmp_path, monkeypatch, capsys, line):
    import shutil

    from PIL import Image

    monkeypatch.chdir(tmp_path)
    model = str(pixel_model().save(tmp_path / "MODEL"))
    assert model
    for name in ("a", "b"):
        (tmp_path / "DATA" / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.fromarray(np.full((8, 8, 3), i * 20, np.uint8))
            picture.save(tmp_path / "DATA" / name / f"{i}.png")
    assert run(["prepare", "DATA", "warm", "--image-size", "8"], capsys)[0] == 0
    if not line.startswith("prepare") and "embed" not in line:
        line = line.replace("DATA", "warm")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=100))
    before = sorted(path for path in tmp_path.rglob("*") if path.name != "lock")
    status, out, err = run(line.split(), capsys)
    assert status == 2 and out == "" and "GB free and " in err.splitlines()[-1], err
    after = {path for path in tmp_path.rglob("*") if path.name != "lock"} - set(before)
    assert not [path for path in after if path.is_file()]


def test_json_has_one_way_out():
    """NaN is no JSON: what `--json` prints goes through one function."""
    for path in (Path(__file__).parents[2] / "igpt" / "cli").glob("*.py"):
        assert path.name == "outputs.py" or "dumps(" not in path.read_text(), path


def test_figures_are_shown_where_they_cannot_be_recorded(tmp_path):
    from igpt.jobs.opening import recorded

    class Data:
        source = "cifar10"

    write_bytes(tmp_path / "metrics.jsonl", b"")
    (tmp_path / "evaluations").write_text("in the way")
    with pytest.warns(UserWarning, match="the figures are not saved: cannot write .*evaluations"):
        found = recorded(str(tmp_path), pixel_model(), "x", {"nats": 1.5}, data=Data())
    assert found["nats"] == 1.5


@pytest.mark.parametrize(("line", "ending"), LINES)
def test_a_quoted_home_is_home_in_every_place(place, capsys, monkeypatch, line, ending):
    monkeypatch.setenv("HOME", str(place))
    status, _, err = run([w.replace("{}", f"~/notes.txt/a{ending}") for w in line.split()], capsys)
    assert status == 2 and f"{place / 'notes.txt'}" in err and not (place / "~").exists()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("~", "{}"),
        ("~/a b/é", "{}/a b/é"),
        ("new=~/a", "new={}/a"),
        ("1:none:~/a.tar", "1:none:{}/a.tar"),
        ("a~/b", "a~/b"),
        ("~nobody-of-that-name/a", "~nobody-of-that-name/a"),
    ],
)
def test_home_within_a_word(tmp_path, monkeypatch, capsys, word, meant):
    monkeypatch.setenv("HOME", str(tmp_path))
    err = run(["info", word], capsys)[2]
    assert meant.format(tmp_path) in err


def test_home_and_empty_names_from_python(tmp_path, monkeypatch):
    from igpt import Palette, UserError, evaluate, load
    from igpt.images.packed.read import PackedSet

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = pixel_model()
    assert model.save("~/m") == tmp_path / "m"
    assert load("~/m").digest() == model.digest()
    for call in (load, model.save, Palette.load, PackedSet.open, lambda p: evaluate(model, p)):
        with pytest.raises(UserError, match="an empty name is no path"):
            call("")
        with pytest.raises(UserError, match="~nobody-of-that-name"):
            call("~nobody-of-that-name/a") if call != model.save else load("~nobody-of-that-name")


@pytest.mark.parametrize(
    "line",
    [
        *("embed MODEL '' --out a.npz", "rank MODEL ''", "classify MODEL ''", "complete MODEL ''"),
        *("finetune MODEL DATA ''", "report ''", "info ''", "evaluate MODEL ''", "sample ''"),
    ],
)
def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(pixel_model().save(tmp_path / "here"))  # a model, which holds a picture
    write_bytes(Path("MODEL.png"), to_png_bytes(np.zeros((8, 8, 3), np.uint8)))
    Path("MODEL").symlink_to(".")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(shlex.split(line.replace("DATA", "digits")), capsys)
    assert (status, out) == (2, "") and "an empty name is no path" in err, err
    assert sorted(tmp_path.rglob("*")) == before
