import errno
import os
import socket
import subprocess
import sys

import pytest

from igpt import files
from igpt.errors import UserError


def test_a_write_is_seen_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "file.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), files.writing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "set"
    with files.writing_folder(folder) as part:
        (part / "a").write_text("1")
    with pytest.raises(RuntimeError), files.writing_folder(folder) as part:
        (part / "b").write_text("2")
        raise RuntimeError
    assert contents(folder) == {"a": "1"}
    with files.writing_folder(folder) as part:
        (part / "b").write_text("2")
    assert contents(folder) == {"b": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device: free"):
        with files.writing(tmp_path / "file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [10, None])
def test_room_is_looked_at_where_the_disk_tells(tmp_path, monkeypatch, free):
    def usage(place):
        assert place == tmp_path
        if free is None:
            raise OSError
        return type("Usage", (), {"free": free})

    monkeypatch.setattr(files.shutil, "disk_usage", usage)
    files.check_room(tmp_path / "new" / "file", 10, "things")
    if free is not None:
        with pytest.raises(UserError, match="GB free and things take about"):
            files.check_room(tmp_path / "new" / "file", 11, "things")


def test_only_a_full_disk_is_to_be_emptied(tmp_path):
    with pytest.raises(UserError, match=r"file: Permission denied: choose another place$"):
        with files.writing(tmp_path / "file"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(("text", "message"), [(None, "cannot read"), ("{", "is not valid JSON")])
def test_unreadable_json_is_named(tmp_path, text, message):
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        files.read_json(path)


def test_a_locked_folder_is_not_touched_and_freed_when_the_holder_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from igpt.files import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"by process {holder.pid} on .*: wait for it"):
            with files.FolderLock(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with files.FolderLock(tmp_path):
        pass


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path):
    (tmp_path / "taken").write_bytes(b"mine")
    for folder in ("taken", "taken/run"):
        with (
            pytest.raises(UserError, match="a file stands in the way: choose another place"),
            files.FolderLock(tmp_path / folder),
        ):
            pass
    assert (tmp_path / "taken").read_bytes() == b"mine"


def made(folder, **texts):
    with files.writing_folder(folder) as part:
        for name, text in texts.items():
            (part / name).write_text(text)


def contents(folder):
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != files.LIST}


@pytest.mark.parametrize("swaps", [True, False])
def test_only_what_is_proven_ours_is_removed(tmp_path, monkeypatch, swaps):
    """With what the system offers to exchange two folders, and without."""
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder = tmp_path / "set"
    made(folder, a="1", b="2", c="3")
    (folder / "b").write_text("edited")
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").write_text("ten days")
    with pytest.raises(UserError, match="it holds b, which igpt did not write"):
        made(folder, a="new")
    assert (folder / "a").read_text() == "1"
    with files.writing_folder(folder, keep_others=True) as part:
        (part / "a").write_text("new")
        (part / "b").write_text("new")
    assert (folder / "a").read_text() == "new"
    assert (folder / "b").read_text() == "edited"
    assert (folder / "mine" / "notes").read_text() == "ten days"
    assert not (folder / "c").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_an_empty_folder_is_filled_as_it_is(tmp_path):
    """It may be a mount, or somebody's shell may be in it."""
    folder = tmp_path / "set"
    folder.mkdir()
    before = folder.stat().st_ino
    made(folder, a="1")
    assert folder.stat().st_ino == before and contents(folder) == {"a": "1"}


KILLED = """
import os, sys
from pathlib import Path
from igpt import files
folder, moment = Path(sys.argv[1]), sys.argv[2]
if moment in ("swap", "between"):
    files._exchange = lambda *_: False
name = {"fill": "claim", "sync": "sync_folder", "before": "_exchange", "after": "_discard"}
if moment in name:
    setattr(files, name[moment], lambda *_, **__: os._exit(9))
if moment == "between":
    renames, rename = [], Path.rename
    def counted(self, target):
        renames.append(self)
        if len(renames) == 3:
            os._exit(9)
        return rename(self, target)
    Path.rename = counted
if moment == "swap":
    files._discard = lambda *_, **__: os._exit(9)
with files.writing_folder(folder, keep_others=True) as part:
    (part / "a").write_text("new")
    (part / "b").write_text("new")
"""


@pytest.mark.parametrize("moment", ["fill", "sync", "before", "between", "swap", "after"])
def test_a_kill_at_any_moment_of_a_replacement_loses_nothing(tmp_path, moment):
    folder = tmp_path / "set"
    made(folder, a="old", b="old")
    (folder / "mine").write_text("ten days")
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], check=False)
    assert done.returncode == 9
    files.settle(folder)
    found = contents(folder)
    assert found.pop("mine") == "ten days"
    assert found in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_what_a_living_process_writes_is_not_cleared(tmp_path):
    with files.writing_folder(tmp_path / "set") as part, files.writing(tmp_path / "file") as file:
        files.settle_below(tmp_path)
        assert part.is_dir() and file.is_file()


def test_leftovers_of_killed_writes_are_cleared(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from igpt import files\n"
        "with files.writing(Path(sys.argv[1])) as part: os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    files.write_bytes(tmp_path / "f", b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "." + "y" * 250])
def test_every_name_that_the_disk_takes_can_be_written(tmp_path, name):
    files.write_bytes(tmp_path / name, b"1")
    made(tmp_path / "f" / name, a="1")
    made(tmp_path / "f" / name, a="2")
    assert contents(tmp_path / "f" / name) == {"a": "2"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o022])
def test_modes_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        made(tmp_path / "set", a="1")
        files.write_bytes(tmp_path / "b", b"1")
        with files.FolderLock(tmp_path / "locked"):
            pass
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        full = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == full & ~mask, path


def test_a_file_system_without_modes_syncs_and_locks_will_do(tmp_path, monkeypatch):
    def lacking(*_args, **_kwargs):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    files._warn_once.cache_clear()
    for module, name in ((os, "chmod"), (os, "fsync"), (files.fcntl, "flock")):
        monkeypatch.setattr(module, name, lacking)
    with pytest.warns(UserWarning) as told:
        made(tmp_path / "set", a="1")
        made(tmp_path / "set", a="2")
        with files.FolderLock(tmp_path / "set"):
            pass
    assert len(told) == len({str(warning.message) for warning in told})
    assert contents(tmp_path / "set")["a"] == "2"
    files._warn_once.cache_clear()


def test_a_fsync_that_lost_data_is_no_trifle(tmp_path, monkeypatch):
    def broken(_handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match="Input/output error"):
        files.write_bytes(tmp_path / "a", b"1")


@pytest.mark.filterwarnings("ignore:the file system")
def test_without_locks_the_living_holder_is_believed(tmp_path, monkeypatch):
    def lacking(*_args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", lacking)
    host = socket.gethostname()
    (tmp_path / "lock").write_text(f"{os.getppid()} {host}\n")
    with pytest.raises(UserError, match=f"in use by process {os.getppid()} on "):
        with files.FolderLock(tmp_path):
            pass
    (tmp_path / "lock").write_text(f"{os.getppid()} elsewhere\n")
    with files.FolderLock(tmp_path):
        pass


def test_a_link_stays_a_link(tmp_path):
    made(tmp_path / "real", a="1")
    (tmp_path / "link").symlink_to("real")
    made(tmp_path / "link", a="2")
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "real") == {"a": "2"}
