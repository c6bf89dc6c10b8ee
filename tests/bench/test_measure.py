import json
import math
import time

import pytest

from igpt.bench import measure


def test_works_take_turns_after_a_warm_up():
    calls = []
    works = {"igpt": lambda: calls.append("a"), "peer": lambda: calls.append("b")}
    spans = measure.take_turns(works, repeats=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in spans.items()} == {"igpt": 3, "peer": 3}


def test_no_round_begins_after_the_time_is_up_but_two_are_made():
    spans = measure.take_turns({"igpt": lambda: time.sleep(0.01)}, repeats=50, at_most_s=0.0)
    assert len(spans["igpt"]) == 2


def test_ratio_is_of_medians_and_spread_of_rounds():
    spans = {"igpt": [1.0, 2.0, 3.0], "peer": [4.0, 8.0, 18.0]}  # ratios 4, 4, 6
    (row,) = measure.rows_of("work", spans, limit_s=0.5, limit="copy")
    assert (row.peer, row.ours_s, row.peer_s, row.ratio) == ("peer", 2.0, 8.0, 4.0)
    assert row.spread == pytest.approx(0.5 * (5 - 4) / 4)
    assert row.share_of_limit == 0.25


def test_without_a_peer_there_is_one_row_of_our_own_time():
    (row,) = measure.rows_of("work", {"igpt": [1.0, 1.0]})
    assert (row.peer, row.peer_s, row.ratio, row.spread) == ("", None, None, 0.0)


def test_document_is_json_with_the_agreed_keys(monkeypatch):
    rates = {"float32_flops": 1.0, "bfloat16_flops": 1.0, "copy_bytes_per_s": 1.0}
    monkeypatch.setattr(measure, "_rates", lambda device: rates)
    rows = measure.rows_of("work", {"igpt": [1.0], "peer": [2.0]})
    document = json.loads(json.dumps(measure.document(rows)))
    assert {"machine", "rows"} <= document.keys()
    agreed = {"row", "peer", "ours_s", "peer_s", "ratio", "spread", "share_of_limit"}
    assert agreed <= document["rows"][0].keys()


def test_table_has_a_line_for_each_row():
    rows = measure.rows_of("work", {"igpt": [0.0012], "peer": [2.0], "other": [0.1]})
    lines = measure.table(rows).splitlines()
    assert len(lines) == 4
    assert "1.2 ms" in lines[2] and "2 s" in lines[2]


def allocate(n_bytes):
    return len(b"x" * n_bytes)


def test_peak_memory_is_that_of_the_work_alone():
    # Starting takes some hundred MB for a moment, above which both must reach.
    small, base = measure.in_own_process(allocate, 2**28)
    large, more = measure.in_own_process(allocate, 2**29)
    assert (small, large) == (2**28, 2**29)
    assert math.isclose(more - base, 2**28, rel_tol=0.1)


def test_the_processors_clock_leaves_waiting_out():
    with measure.counting("cpu"):
        spans = measure.take_turns({"igpt": lambda: time.sleep(0.05)}, repeats=2)
    assert max(spans["igpt"]) < 0.03
    assert min(measure.take_turns({"igpt": lambda: time.sleep(0.05)}, repeats=2)["igpt"]) >= 0.05
