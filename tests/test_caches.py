"""The cache is shown by kind, cleared by kind, and bounded: oldest use goes first."""

import json
import os
import re
import time
from pathlib import Path
from typing import get_args

import pytest

from igpt import caches
from igpt.cli.cache import Kind
from igpt.files import FolderLock
from tests.cli.test_main import run


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Features and packed copies of 1,000 bytes each, used 1 to 4 hours ago; and other things."""
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    for hours, name in enumerate(("features/a.npy", "packed/b/x", "features/c.npy", "packed/d/x")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        entry = path if path.parent.name == "features" else path.parent
        then_s = time.time() - 3600 * (4 - hours)
        os.utime(entry, (then_s, then_s))
    for name in (
        "downloads/cifar.zip",
        "remote/a/b",
        "native-decode-1-2.so",
        "inductor/x/y.so",
        "odd",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(10))
    return tmp_path


def kept(cache):
    return {path.name for kind in caches.GROWING for path in caches.entries(kind)}


def test_kinds_are_counted(cache):
    assert caches.overview() == {
        "features": (2, 2000),
        "packed": (2, 2000),
        "finetuned": (0, 0),
        "downloads": (1, 10),
        "remote": (1, 10),
        "code": (2, 20),
        "tables": (0, 0),
        "verified": (0, 0),
        "rows": (0, 0),
        "other": (1, 10),
    }


def test_whatever_the_package_keeps_has_a_kind():
    """What no kind names would be shown as `other` and never be cleared."""
    code = "".join(path.read_text() for path in Path(caches.__file__).parent.rglob("*.py"))
    kept = set(re.findall(r'cache_folder\(\)\s*/\s*"(\w+)"', code))
    assert {"features", "finetuned"} < kept <= set(caches.KINDS)
    assert set(get_args(Kind)) == {*caches.KINDS, "all"}


def test_what_was_used_longest_ago_goes_first(cache):
    assert caches.trim(2500) == 2000
    assert kept(cache) == {"c.npy", "d"}
    assert caches.trim(2500) == 0
    assert caches.trim(0) == 2000 and kept(cache) == set()


def test_what_is_used_is_younger_and_what_is_recent_stays(cache, monkeypatch):
    monkeypatch.setattr(caches, "LIMIT_BYTES", 1000)
    monkeypatch.setattr(caches, "RECENT_S", 1.5 * 3600)
    caches.used(cache / "features" / "a.npy")
    assert kept(cache) == {"a.npy", "d"}  # d was used an hour ago


def test_a_packed_copy_that_is_being_written_stays(cache):
    with FolderLock(cache / "packed" / "b"):
        caches.clear(["all"])
        assert kept(cache) == {"b"}
    caches.clear(["packed"])
    assert kept(cache) == set() and (cache / "odd").exists()


def test_links_are_removed_and_not_followed(cache, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "mine"
    outside.write_bytes(bytes(5))
    (cache / "features" / "link.npy").symlink_to(outside)
    (cache / "packed" / "link").symlink_to(outside.parent)
    caches.clear(["all"])
    assert outside.exists() and kept(cache) == set()


def test_the_command_shows_and_clears(cache, capsys):
    status, out, _ = run(["cache"], capsys)
    assert status == 0 and str(cache) in out and "features" in out
    status, out, _ = run(["cache", "--clear", "features", "code", "--json"], capsys)
    told = json.loads(out)
    assert status == 0 and told["removed_bytes"] == 2020 and told["kinds"]["features"] == [0, 0]
    _, out, _ = run(["cache", "--at-most-gb", "0"], capsys)
    assert "removed 0.0 MB" in out and kept(cache) == set()


@pytest.mark.parametrize(
    "words", [["--at-most-gb", "-1"], ["--at-most-gb", "nan"], ["--clear", "x"]]
)
def test_wrong_words_are_refused(cache, words, capsys):
    status, _, err = run(["cache", *words], capsys)
    assert status == 2 and "igpt: error" in err and len(kept(cache)) == 4


def test_an_empty_cache_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "none"))
    assert run(["cache"], capsys)[0] == 0
    assert not (tmp_path / "none").exists()
