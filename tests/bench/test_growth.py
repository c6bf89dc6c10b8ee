"""`igpt bench growth` at its smallest: every part, its budget, and what is said of its growth."""

import sys
from dataclasses import replace

import pytest

from igpt.bench import growth
from igpt.bench.command import run_command
from igpt.bench.measure import rows_of
from igpt.bench.train import Size
from igpt.errors import UserError

TINY = Size(16, 24, 1, 3, 2)


def test_exponents_are_slopes_of_logarithms():
    assert growth.exponent_of([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def spans_of(size):
    return [0.1 * size.seq_len, 0.1 * size.seq_len]


def test_the_fitted_exponent_is_stated(monkeypatch):
    monkeypatch.setattr(growth, "step_spans", spans_of)
    monkeypatch.setattr(
        growth.measure, "in_own_process", lambda work, case, at_most_s: (work(case), 7)
    )
    rows = growth.bench_growth([], quick=True)
    # Seconds a batch grow as T, images a batch as 1 / T.
    assert "seconds an image grow as T^2.00, operations as T^1." in rows[-1].note
    assert [row.memory_bytes for row in rows] == [7, 7]


def test_a_part_ends_when_its_time_is_up_and_says_what_is_left_out(monkeypatch, capsys):
    def row_of(label, size, left_s):
        return rows_of(str(size), {"igpt": [1.0]})[0] if size.batch_size < 32 else None

    monkeypatch.setattr(growth, "step_row", row_of)
    rows = growth.bench_growth([], quick=False, parts=["B"], at_most_s=60)
    assert [row.row[-4:].strip() for row in rows] == ["B=8", "B=16"]
    assert rows[-1].note.startswith("seconds an image grow as B^-1.00")
    assert "growth with B: left out from T=256 d=128 L=4 H=8 B=32 on" in capsys.readouterr().err
    assert growth.bench_growth([], quick=False, parts=["B"], at_most_s=0) == []


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_killed():
    assert growth.step_row("T", TINY, 0.1) is None


@pytest.mark.slow
def test_ranks_share_the_batch():
    rows = growth.bench_growth([], quick=False, parts=["ranks"])
    assert [row.row.split(":")[0] for row in rows] == ["step of 1 ranks", "step of 2 ranks"]
    assert "of a perfect speed-up" in rows[-1].note


@pytest.mark.slow
@pytest.mark.parametrize("command", growth.FEWEST)
def test_commands_run_on_their_pictures(command, tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    row = growth.image_row(command, 60, tmp_path, 100)
    assert row.row == f"{command} 60 images"
    assert row.ours_s > 0 and row.memory_bytes > 2**20


def test_growth_is_of_the_further_images_alone():
    spans = [[2.0], [2.0 + 3.0], [2.0 + 3.0 + 24.0]]  # 1, then 2 seconds a further image
    rows = [
        replace(rows_of("work", {"igpt": found})[0], memory_bytes=peak)
        for found, peak in zip(spans, (100, 100, 110), strict=True)
    ]
    grown = growth.with_growth(rows, [1, 4, 16])
    assert "a further image takes 2.00 x as long after 4; peak memory 1.10 x" in grown[-1].note
    assert growth.with_growth(rows[:2], [1, 4, 16]) == rows[:2]


def test_a_command_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "inputs_of", lambda *_: ["info", "nowhere"])
    with pytest.raises(UserError, match="igpt info nowhere ended with status 2: run it alone"):
        growth.image_row("embed", 1, tmp_path, 100)


def test_a_command_is_killed_when_its_time_is_up():
    done = run_command([sys.executable, "-c", "import time; time.sleep(60)"], at_most_s=0.3)
    assert done.status == -9 and 0.3 <= done.span_s < 10


def test_a_commands_peak_is_its_own():
    work = "b = b'x' * 2**27"
    assert 2**27 < run_command([sys.executable, "-c", work]).peak_bytes < 2**27 + 2**25
