import contextlib
import os
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images import rejects


def test_a_job_stops_only_above_the_share() -> None:
    reasons = {"damaged": 1, rejects.NOT_LISTED: 50}
    about = {"n_read": 10, "n_images": 10, "listed": "x/rejects.csv"}
    rejects.check_rejects(reasons, max_bad=0.1, **about)
    line = "1 of 10 images cannot be used .50 beside .*; 1 damaged.*--max-bad 0.09.*x/rejects.csv"
    with pytest.raises(UserError, match=line):
        rejects.check_rejects(reasons, max_bad=0.09, **about)


@pytest.mark.parametrize(("n_bad", "share", "stops"), [(1, 0.1, 0), (2, 0.1, 1), (1, 0.05, 1)])
def test_one_of_few_is_left_out_unless_a_share_says_else(
    n_bad: int, share: float, stops: bool
) -> None:
    about = {"n_read": 5, "n_images": 5, "listed": "x/rejects.csv", "max_bad": share}
    with pytest.raises(UserError) if stops else contextlib.nullcontext():
        rejects.check_rejects({"damaged": n_bad}, **about)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="not a share"):
        rejects.check_max_bad(share)


def test_reasons_say_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("gone")
    found = {}
    for name in ("loop", "dead", "nowhere", "."):
        try:
            os.close(os.open(tmp_path / name, os.O_RDWR))
        except OSError as error:
            found[name] = rejects.reason_of(error)
    assert found == {
        "loop": "a link to itself",
        "dead": "a link to nothing",
        "nowhere": "there is no such file",
        ".": "this is a folder",
    }


def test_a_pointer_of_git_lfs_is_named() -> None:
    rejects.check_pointer(b"\x89PNG")
    with pytest.raises(UserError, match="git lfs pull"):
        rejects.check_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
