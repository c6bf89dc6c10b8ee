import errno
import os
import subprocess
import sys

import pytest

from igpt import runs
from igpt.errors import UserError


def test_a_write_is_seen_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "file.json"
    runs.write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), runs.writing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert runs.read_json(path) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "set"
    with runs.writing_folder(folder) as part:
        (part / "a").write_text("1")
    with pytest.raises(RuntimeError), runs.writing_folder(folder) as part:
        (part / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in folder.iterdir()] == ["a"]
    with runs.writing_folder(folder) as part:
        (part / "b").write_text("2")
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device: free"):
        with runs.writing(tmp_path / "file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_only_a_full_disk_is_to_be_emptied(tmp_path):
    with pytest.raises(UserError, match=r"file: Permission denied: choose another place$"):
        with runs.writing(tmp_path / "file"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(("text", "message"), [(None, "cannot read"), ("{", "is not valid JSON")])
def test_unreadable_json_is_named(tmp_path, text, message):
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        runs.read_json(path)


def test_a_locked_folder_is_not_touched_and_freed_when_the_holder_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from igpt.runs import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"is in use by process {holder.pid}: wait for it"):
            with runs.FolderLock(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with runs.FolderLock(tmp_path):
        pass


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path):
    (tmp_path / "taken").write_bytes(b"mine")
    for folder in ("taken", "taken/run"):
        with (
            pytest.raises(UserError, match="a file stands in the way: choose another place"),
            runs.FolderLock(tmp_path / folder),
        ):
            pass
    assert (tmp_path / "taken").read_bytes() == b"mine"


def test_cache_folder_is_moved_by_igpt_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    assert runs.cache_folder() == tmp_path
    monkeypatch.delenv("IGPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(runs.cache_folder()) == "/somewhere/igpt"
