"""What the pages mark as runnable is run, in order, in a folder such as they speak of.

`<!-- runnable -->` above a fenced block of commands or Python marks it. Training is cut to a few
steps of a tiny network; everything else runs as it is written.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.cli.main import main

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- runnable -->\n```(sh|python)\n(.*?)```", re.DOTALL)
TINY = """--model.n-layer 2 --model.n-head 2 --model.n-embd 16 --data.n-colors 16
    --train.total-steps 3 --train.batch-size 4 --train.warmup-steps 1 --train.compile off
    --train.precision fp32 --train.valid-images 4""".split()


def blocks_of(page):
    return BLOCK.findall(page.read_text())


PAGES = [
    page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if blocks_of(page)
]


def run(*args):
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 0, args


def shrunk(args):
    """The same command, with its training cut short."""
    if args[0] != "pretrain" or "--resume" in args:
        return args
    return [*args, *TINY]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with `photos/` of three classes, `cat.jpg`, `dog.jpg` and the run `runs/demo`."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for label, color in enumerate(([200, 80, 40], [40, 120, 200], [90, 180, 60])):
        place = folder / "photos" / ("cats", "dogs", "boats")[label]
        place.mkdir(parents=True)
        for i in range(16):
            noise = rng.integers(-40, 41, (40, 48, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.jpg")
    shutil.copy(folder / "photos" / "cats" / "0.jpg", folder / "cat.jpg")
    shutil.copy(folder / "photos" / "dogs" / "0.jpg", folder / "dog.jpg")
    photos, demo = str(folder / "photos"), str(folder / "runs" / "demo")
    run(*shrunk(["pretrain", photos, demo, "--recipe", "demo"]))
    run("probe", demo, photos)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_marks_as_runnable_runs(page, bench, tmp_path, monkeypatch):
    shutil.copytree(bench, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for kind, text in blocks_of(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), {})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                assert words[0] == "igpt", f"{line}: only igpt commands can be run"
                run(*shrunk(words[1:]))


def test_the_tutorial_and_the_readme_are_run():
    names = {page.name for page in PAGES}
    assert {"README.md", "tutorial.md", "train.md"} <= names
