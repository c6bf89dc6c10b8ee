"""Write to a real file system that fills up, one page later in each trial (needs Linux, root).

`python -m tests.full_disk save|prepare|report FOLDER` prints one JSON line. It is meant to be run
by `unshare -rm`, so that what it mounts is seen by no other process and goes when it ends.
"""

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

PAGE_BYTES = 4096
MOST_PAGES = 2000
ROOMY = "size=64m"


def mount(disk, options):
    """Mount a fresh file system, or change the size of the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def resize(disk, size):
    """Give the file system another size."""
    subprocess.run(["mount", "-o", f"remount,{size}", disk], check=True)


def digests(folder):
    """Every file below, by its sha256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def command(*words):
    """Status and standard error of an igpt command run here."""
    from igpt.cli.main import main

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(words))
        except SystemExit as stop:
            return stop.code, err.getvalue()
    raise AssertionError("main returns by SystemExit only")


class Save:
    """A checkpoint beside an earlier one, as the loop saves it."""

    def before(self, disk):
        """An intact checkpoint."""
        return self._save(disk, 1)

    def attempt(self, disk):
        """Save another."""
        return self._save(disk, 2)

    def problems(self, disk, status, old):
        """What is wrong after the attempt."""
        from igpt.train import checkpoint

        path, rejected = checkpoint.newest(disk)
        wrong = [] if not rejected else [f"rejected {rejected}"]
        if path is None or checkpoint.step_of(path) != (2 if status == 0 else 1):
            wrong.append(f"newest is {path}")
        return wrong + ([] if status == 0 or digests(disk) == old else ["files changed"])

    def _save(self, disk, step):
        from igpt.errors import UserError
        from igpt.train import checkpoint

        tensors = {"a": torch.full((3000,), float(step)), "b": torch.arange(4)}
        path = checkpoint.folder_of(disk, step)
        try:
            checkpoint.save(path, model=tensors, optimizer={"a/m": tensors["a"]}, state={"step": 1})
        except UserError as error:
            return 2, f"igpt: error: {error}\n"
        return 0, ""


class Prepare:
    """`igpt prepare`; what is refused is taken up again once there is room."""

    def __init__(self):
        self._whole = None

    def before(self, disk):
        """A file of someone else's."""
        (disk / "old").write_text("mine")

    def attempt(self, disk):
        """Pack the digits."""
        return command("prepare", "digits", str(disk / "set"), "--image-size", "8")

    def problems(self, disk, status, old):
        """What is wrong after the attempt."""
        wrong = [] if (disk / "old").read_text() == "mine" else ["another file changed"]
        if status == 0:
            return wrong
        if (disk / "set" / "manifest.json").exists():
            wrong.append("an unfinished set looks finished")
        resize(disk, ROOMY)
        status, err = self.attempt(disk)
        if status != 0:
            return [*wrong, f"cannot be taken up again: {err}"]
        found = digests(disk / "set")
        self._whole = self._whole or found
        return wrong if found == self._whole else [*wrong, "taken up again, the set differs"]


class Report:
    """`igpt report` over an earlier page; the run stands in the folder that is given."""

    def __init__(self, folder):
        self._folder = folder

    def before(self, disk):
        """A run with a page."""
        shutil.copytree(self._folder, disk / "run")
        return command("report", str(disk / "run"))

    def attempt(self, disk):
        """Write the page anew."""
        return command("report", str(disk / "run"))

    def problems(self, disk, status, old):
        """What is wrong after the attempt."""
        return [] if status == 0 or digests(disk) == old else ["files changed"]


def trial(work, disk, pages):
    """One attempt with so many free pages: (status, what is wrong)."""
    mount(disk, ROOMY)
    try:
        work.before(disk)
        used = shutil.disk_usage(disk).used
        old = digests(disk)
        resize(disk, f"size={used + pages * PAGE_BYTES}")
        status, err = work.attempt(disk)
        wrong = work.problems(disk, status, old)
    finally:
        subprocess.run(["umount", disk], check=True)
    lines = [line for line in err.splitlines() if line.startswith("igpt: error: ")]
    if status not in (0, 2):
        wrong.append(f"exit status {status}: {err[-300:]}")
    if status == 2 and (len(lines) != 1 or "No space left on device" not in lines[0]):
        wrong.append(f"not one clear line: {err[-300:]}")
    return status, wrong


def main():
    """Make room page by page until the work is done."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    work = {"save": Save, "prepare": Prepare, "report": lambda: Report(folder / "run")}[kind]()
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    failed, problems = 0, []
    for pages in range(1, MOST_PAGES):
        status, wrong = trial(work, disk, pages)
        problems += [f"{pages} pages free: {line}" for line in wrong]
        if status == 0:
            break
        failed += 1
    print(json.dumps({"failed": failed, "status": status, "problems": problems}))


if __name__ == "__main__":
    main()
