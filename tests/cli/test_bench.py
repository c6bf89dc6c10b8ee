"""`igpt bench`: its options, what it writes, and each error's line."""

import json
from pathlib import Path

import pytest

from igpt.bench import measure
from igpt.bench.measure import rows_of
from igpt.cli import bench as bench_module
from igpt.cli.bench import ALL
from tests.cli.test_main import run


@pytest.fixture
def measured(monkeypatch):
    """What the bench was asked for, in place of measuring."""
    asked = []

    def measured(peers, *, quick, at_most_s, photos=()):
        asked.append((peers, quick, at_most_s))
        return rows_of("work", {"igpt": [1.0, 1.0], **{peer: [3.0, 3.0] for peer in peers}})

    monkeypatch.setattr(bench_module, "_measure_of", lambda work: measured)
    return asked


def test_json_has_machine_and_rows(measured, capsys):
    status, out, _ = run(["bench", "train", "--against", "sketch, mingpt", "--json"], capsys)
    assert status == 0
    document = json.loads(out)
    assert [row["peer"] for row in document["rows"]] == ["sketch", "mingpt"]
    assert document["rows"][0]["ratio"] == 3.0
    assert document["machine"]["float32_flops"] > 0
    assert measured == [(["sketch", "mingpt"], False, 60.0)]


def test_without_against_the_usual_peers_are_taken(measured, capsys):
    run(["bench", "sample", "--quick"], capsys)
    assert measured == [(["transformers", "sketch"], True, 60.0)]


def test_tars_of_photos_are_handed_on(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(peers, *, photos, **_):
        asked.append((peers, photos))
        return rows_of("work", {"igpt": [1.0, 1.0]})

    monkeypatch.setattr(bench_module, "_measure_of", lambda work: measured)
    (tmp_path / "a.tar").write_bytes(b"")
    assert run(["bench", "data", "--photos", str(tmp_path / "a.tar")], capsys)[0] == 0
    assert asked == [(["transformers", "pillow"], [tmp_path / "a.tar"])]


def test_parts_of_growth_are_handed_on(monkeypatch, capsys):
    asked = []

    def measured(peers, *, parts, **_):
        asked.append(parts)
        return rows_of("work", {"igpt": [1.0, 1.0]})

    monkeypatch.setattr(bench_module, "_measure_of", lambda work: measured)
    assert run(["bench", "growth", "--parts", "T, ranks"], capsys)[0] == 0
    assert asked == [["T", "ranks"]]


def test_all_measures_every_work_once_into_one_table(measured, capsys):
    status, out, _ = run(["bench", "all"], capsys)
    assert status == 0
    assert [asked[0] for asked in measured] == [list(bench_module.PEERS[w]) for w in ALL]
    assert measure.kind() in out.splitlines()[0] and "GFLOP/s" in out.splitlines()[0]
    assert sum(line.startswith("| work | peer |") for line in out.splitlines()) == 1


def test_a_folder_keeps_and_checks_files_by_kind_of_machine(measured, tmp_path, capsys):
    assert run(["bench", "all", "--out", str(tmp_path)], capsys)[0] == 0
    files = {path.name for path in (tmp_path / measure.kind()).iterdir()}
    assert files == {f"{work}.json" for work in ALL}
    assert run(["bench", "train", "--check", str(tmp_path)], capsys)[0] == 0
    assert run(["bench", "all", "--out", str(tmp_path / "one.json")], capsys)[0] == 0
    (tmp_path / measure.kind()).rename(tmp_path / "pdp11")
    status, _, err = run(["bench", "train", "--check", str(tmp_path)], capsys)
    assert status == 2 and "is no file: measure first" in err


def test_figures_of_another_kind_of_machine_are_not_compared(measured, tmp_path, capsys):
    path = tmp_path / "kept.json"
    run(["bench", "train", "--out", str(path)], capsys)
    document = json.loads(path.read_text())
    document["machine"]["kind"] = "pdp11"
    path.write_text(json.dumps(document))
    status, _, err = run(["bench", "train", "--check", str(path)], capsys)
    assert status == 2
    assert f"--check {path} was measured on pdp11, this is {measure.kind()}: ratios" in err


def test_what_the_repository_keeps_lies_by_kind():
    for path in Path("benchmarks").glob("*/*.json"):
        document = json.loads(path.read_text())
        assert document.get("machine", {"kind": path.parent.name})["kind"] == path.parent.name, path


def test_table_and_file_and_check(measured, tmp_path, capsys):
    path = str(tmp_path / "kept.json")
    status, out, _ = run(["bench", "train", "--against", "sketch", "--out", path], capsys)
    assert status == 0 and "| work | sketch |" in out
    assert run(["bench", "train", "--against", "sketch", "--check", path], capsys)[0] == 0
    document = json.loads((tmp_path / "kept.json").read_text())
    document["rows"][0]["ratio"] = 30.0
    (tmp_path / "kept.json").write_text(json.dumps(document))
    status, _, err = run(["bench", "train", "--against", "sketch", "--check", path], capsys)
    assert status == 2
    assert f"slower than in {path}: work against sketch: 30.00 x -> 3.00 x" in err


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["train", "--against", "jax"],
            "--against jax: bench train knows transformers, mingpt, sketch: choose among these",
        ),
        (
            ["all", "--against", "jax"],
            "--against jax: bench train knows transformers, mingpt, sketch: choose among these",
        ),
        (["start", "--against", "sketch"], "bench start has no peers: drop --against"),
        (
            ["data", "--against", "sketch"],
            "--against sketch: bench data knows transformers, pillow: choose among these",
        ),
        (["data", "--photos", "none.tar"], "--photos none.tar is no file: name a tar of JPEGs"),
        (
            ["train", "--photos", "odd.json"],
            "--photos is for bench data, not for bench train: drop it",
        ),
        (["train", "--parts", "T"], "--parts is for bench growth, not for bench train: drop it"),
        (
            ["growth", "--parts", "T,x"],
            "--parts x: bench growth knows T, B, d, L, prepare, palette, probe, embed, ranks: "
            "choose among these",
        ),
        (["train", "--out", "a.txt"], "--out a.txt: choose a name that ends in .json"),
        (
            ["train", "--check", "none.json"],
            "--check none.json is no file: measure first, with --out none.json",
        ),
        (
            ["train", "--check", "odd.json"],
            "--check odd.json is not what bench wrote: measure anew, with --out",
        ),
    ],
)
def test_bad_input_is_one_line(args, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text("[1]")
    status, out, err = run(["bench", *args], capsys)
    assert (status, out, err) == (2, "", f"igpt: error: {line}\n")


def test_the_clock_is_recorded(measured, capsys):
    _, out, _ = run(["bench", "train", "--against", "sketch", "--json", "--clock", "cpu"], capsys)
    machine = json.loads(out)["machine"]
    assert (machine["clock"], machine["threads"]) == ("cpu", 1)


def test_an_unknown_work_is_refused(capsys):
    status, _, err = run(["bench", "tarin"], capsys)
    assert status == 2 and "train" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("work", bench_module.PEERS)
def test_every_work_has_its_function(work):
    assert callable(bench_module._measure_of(work))
