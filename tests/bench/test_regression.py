import pytest

from igpt.bench.measure import check_ratios, rows_of, slower
from igpt.errors import UserError


def measured(ratio):
    return rows_of("work", {"igpt": [1.0, 1.0], "peer": [ratio, ratio]}, note="float32")


def kept(ratio, **other):
    return [
        {"row": "work", "peer": "peer", "note": "float32", "ratio": ratio, "spread": 0.05, **other}
    ]


def test_a_ratio_that_fell_is_named():
    assert slower(measured(2.0), kept(4.0)) == ["work against peer: 4.00 x -> 2.00 x"]


@pytest.mark.parametrize("ratio", [3.2, 4.0, 9.0])
def test_within_margin_and_spread_nothing_is_said(ratio):
    assert slower(measured(ratio), kept(4.0)) == []


def test_another_number_type_is_not_compared():
    assert slower(measured(1.0), kept(4.0, note="bfloat16")) == []


def test_slower_ends_in_one_line():
    with pytest.raises(UserError, match=r"slower than in b\.json: work against peer: 4\.00 x -> 1"):
        check_ratios(measured(1.0), kept(4.0), where="b.json")


def test_rows_that_never_meet_are_refused():
    with pytest.raises(UserError, match=r"no row of b\.json was measured now"):
        check_ratios(measured(1.0), [{"row": "other", "peer": "peer"}], where="b.json")
