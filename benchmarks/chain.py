"""Every step of the paper on a small ImageNet: by one process, by two, by two of which one dies.

    python benchmarks/chain.py [--only NAME ...] [--keep FOLDER]

Official tars are made of crops of scikit-learn's two photographs, prepared in two parts, and a
narrowed igpt-s (autoregressive and BERT) is trained on them, evaluated, probed, fine-tuned at 32
and 48 pixels, given few labels; it draws, completes and reports. Each step is done by one process
and by two (gloo), where a command shares its work; then by two of which one is killed half-way, and
once more. Figures must agree to 1e-5, files that are written to the bit. Prints a Markdown table;
the status is 1 where two results differ. With --keep the same command goes on after the steps that
are done.
"""

import argparse
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from igpt.images.packed.read import PackedSet
from igpt.train.folder import read_metrics

N_CLASSES, N_EACH, SIDE = 10, 30, 90
NARROW = (
    "--recipe igpt-s --model.n-layer 4 --model.n-head 2 --model.n-embd 32 --data.n-colors 64 "
    "--train.batch-size 8 --train.micro-batch 4 --train.total-steps 12 --train.log-every 1 "
    "--train.valid-every 6 --train.valid-images 8 --train.checkpoint-every 3 --train.draw-every 0 "
    "--train.compile off --train.precision fp32"
).split()
TUNED = (
    "--finetune.total-steps 6 --finetune.batch-size 8 --finetune.micro-batch 4 "
    "--finetune.valid-every 3 --finetune.checkpoint-every 2 --finetune.log-every 1 "
    "--finetune.precision fp32 --finetune.compile off"
).split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command. `{out}` is what it writes, `{w}` the folder of what steps before it made."""

    name: str
    words: tuple[str, ...]
    outcome: Callable[[str, Path], Any]
    """Of standard output and `{out}`: plain values, or bytes."""
    shares: bool = True
    again: tuple[str, ...] = ()
    """Options with which it goes on after it was killed."""


def figures(out: str, _: Path) -> Any:
    """What a JSON document on standard output says; times and names of runs are left out."""
    told = json.loads(out.splitlines()[-1])
    return {key: value for key, value in told.items() if key not in ("facts", "model", "time")}


def curve(_: str, folder: Path) -> Any:
    """Losses and accuracies of a run, step by step."""
    names = ("step", "loss_nats", "valid_nats", "valid_accuracy", "class_nats", "token_nats")
    return [{k: line[k] for k in names if k in line} for line in read_metrics(folder)]


def images(_: str, folder: Path) -> Any:
    """All images of a packed set, in an order that the number of parts does not change."""
    packed = PackedSet.open(folder)
    n = sum(packed.n(split) for split in ("train", "valid", "test"))
    rows = packed.images_at(np.arange(n))[:].reshape(n, -1)
    return rows[np.lexsort(rows.T[:64])].tobytes()


def arrays(_: str, file: Path) -> Any:
    """What an .npz holds."""
    with np.load(file) as held:
        return b"".join(held[name].tobytes() for name in sorted(held.files))


def there(_: str, file: Path) -> Any:
    """Whether something was written."""
    return file.stat().st_size > 0


def steps() -> list[Step]:
    """All of them, each after those it needs."""
    raw, packed = "{w}/raw", "{w}/packed32"
    found = [
        Step(
            name=f"packed{side}",
            words=("prepare", raw, "{out}", "--image-size", str(side), "--keep-side", "64"),
            outcome=images,
        )
        for side in (32, 48)
    ]
    for kind in ("ar", "bert"):
        run = f"{{w}}/{kind}"
        found += [
            Step(
                name=kind,
                words=("pretrain", packed, "{out}", *NARROW, "--train.objective", kind),
                outcome=curve,
                again=("--resume",),
            ),
            *(
                Step(
                    name=f"{kind}-{short}",
                    words=(command, run, packed, *options, "--precision", "fp32", "--json"),
                    outcome=figures,
                )
                for short, command, options in (
                    ("evaluate", "evaluate", ()),
                    ("probe", "probe", ("--joined", "5")),
                    ("probe-large", "probe", ("--joined", "5", "--large")),
                    ("probe-sgd", "probe", ("--solver", "sgd", "--sgd-steps", "200", "--large")),
                )
            ),
            *(
                Step(
                    name=f"{kind}-tuned{side}",
                    words=("finetune", run, f"{{w}}/packed{side}", "{out}", *options, *TUNED),
                    outcome=curve,
                    again=("--resume",),
                )
                for side, options in ((32, ()), (48, ("--image-size", "48")))
            ),
        ]
    written = ("--tokens", "{out}", "--out", "{out}.png")
    ar, photo = "{w}/ar", "{w}/photo.jpg"
    return [
        *found,
        Step(
            name="samples.npz",
            words=(*("sample", ar, "--n", "4", "--precision", "fp32"), *written),
            outcome=arrays,
        ),
        Step(
            name="features.npz",
            words=("embed", ar, photo, photo, "--layer", "2", "--out", "{out}"),
            outcome=arrays,
        ),
        Step(
            name="few-labels",
            words=("lowdata", ar, packed, "--labels", "4", "--subsets", "2", "--json"),
            outcome=figures,
            shares=False,
        ),
        Step(
            name="completion.png",
            words=("complete", ar, photo, "--out", "{out}"),
            outcome=there,
            shares=False,
        ),
        Step(
            name="report",
            words=("report", ar),
            outcome=lambda out, _: bool(out.strip()),
            shares=False,
        ),
    ]


def make_tars(folder: Path) -> None:
    """ImageNet's training tar of class tars, of crops of photographs; and one photograph."""
    rng = np.random.default_rng(0)
    pictures = load_sample_images().images
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for label in range(N_CLASSES):
            picture = pictures[label % 2]
            band = (picture.shape[1] - 2 * SIDE) * (label // 2) // (N_CLASSES // 2)
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(N_EACH):
                    top = int(rng.integers(0, picture.shape[0] - SIDE))
                    left = band + int(rng.integers(0, 60))
                    image = Image.fromarray(picture[top : top + SIDE, left : left + SIDE])
                    held = io.BytesIO()
                    image.save(held, "JPEG", quality=90)
                    add(tar, f"n{label:08d}_{number}.JPEG", held.getvalue())
            add(outer, f"n{label:08d}.tar", inner.getvalue())
    Image.fromarray(pictures[0][:200, :200]).save(folder.parent / "photo.jpg")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """One file more."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def started(words: list[str], ranks: int, folder: Path) -> "subprocess.Popen[str]":
    """A command as so many processes."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        words = ["--", "igpt", *words]
    else:
        words = ["igpt", *words]
    return subprocess.Popen(
        [*launcher, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IGPT_CACHE": str(folder / "cache")},
        start_new_session=True,
    )


def kill_last_rank(launcher: int, rank: int) -> bool:
    """SIGKILL to one of the launcher's processes."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path(f"/proc/{process}/status").read_text()
            environ = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"\nPPid:\t{launcher}\n" in status and f"RANK={rank}".encode() in environ:
            os.kill(int(process), signal.SIGKILL)
            return True
    return False


def done(step: Step, words: list[str], ranks: int, folder: Path) -> tuple[str, float]:
    """Standard output of a command that must succeed, and its seconds."""
    began = time.monotonic()
    process = started(words, ranks, folder)
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{step.name} as {ranks}: status {process.returncode}\n{err[-3000:]}")
    return out, time.monotonic() - began


def near(one: Any, other: Any) -> bool:
    """The same plain values, numbers to 1e-5; bytes to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, float):
        return bool(abs(one - other) <= 1e-5 * max(1.0, abs(one)))
    return bool(one == other)


def run_step(step: Step, folder: Path) -> list[str]:
    """A row: seconds of one and of two, and what the three comparisons said."""

    def words(place: Path, more: tuple[str, ...] = ()) -> list[str]:
        return [word.format(w=folder, out=place) for word in (*step.words, *more)]

    place = folder / step.name
    first, third = (folder / kind / step.name for kind in ("one", "killed"))
    for old in (place, first, third):  # of a chain that was stopped here
        shutil.rmtree(old, ignore_errors=True)
    out, one_s = done(step, words(first), 1, folder)
    expected = step.outcome(out, first)
    shared, two_s, ranks = "-", "-", 1
    if step.shares:
        ranks = 2
        out, seconds = done(step, words(place), 2, folder)
        two_s = f"{seconds:.1f}"
        shared = "same" if near(step.outcome(out, place), expected) else "DIFFERS"
    else:
        done(step, words(place), 1, folder)
    process = started(words(third), ranks, folder)
    time.sleep(0.45 * (float(two_s) if step.shares else one_s))
    hit = process.poll() is None
    if hit and step.shares:
        hit = kill_last_rank(process.pid, ranks - 1)
    elif hit:
        process.kill()
    began = time.monotonic()
    process.communicate()
    ended = f"{time.monotonic() - began:.1f}" if hit and process.returncode else "not in time"
    if ended == "not in time":
        killed = "-"
    elif (third / "manifest.json").exists():  # the set was whole when the process died
        killed = "same" if near(step.outcome("", third), expected) else "DIFFERS"
    else:
        more = step.again if third.exists() else ()
        out, _ = done(step, words(third, more), ranks, folder)
        killed = "same" if near(step.outcome(out, third), expected) else "DIFFERS"
    return [step.name, f"{one_s:.1f}", two_s, shared, ended, killed]


def main() -> None:
    """Run the chain and print its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chain-") as scratch:
        folder = options.keep or Path(scratch)
        if not (folder / "raw").exists():
            folder.mkdir(exist_ok=True)
            make_tars(folder / "raw")
            for name in ("one", "killed"):
                (folder / name).mkdir()
        print("| step | one, s | two, s | two as one | ended after a kill, s | killed, again |")
        print("|---|---|---|---|---|---|", flush=True)
        failed, kept = False, folder / "rows.json"
        rows = json.loads(kept.read_text()) if kept.exists() else {}
        for step in steps():
            if options.only and step.name not in options.only:
                continue
            if step.name not in rows:
                rows[step.name] = run_step(step, folder)
                kept.write_text(json.dumps(rows))
            failed |= "DIFFERS" in rows[step.name]
            print("| " + " | ".join(rows[step.name]) + " |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
