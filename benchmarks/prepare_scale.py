"""Prepares 200,000 JPEGs, kills it in the middle, goes on: growth, peak memory, equal result.

    python benchmarks/prepare_scale.py --n 200000 --work /tmp/scale --photos photos.tar tiny.tar

The JPEGs are CIFAR-10's images and those of the tars given, encoded anew at several qualities, in
16 WebDataset shards; 1, 4 and 16 of them are prepared, and a palette is fitted to each result.
Prints one JSON document; takes about 10 minutes on 2 cores.
"""

import argparse
import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from igpt.images.decode import read_image
from igpt.images.packed.read import PackedSet
from igpt.images.packed.write import STATE
from igpt.images.prepare import open_data
from igpt.images.sources.archive import read_files
from igpt.progress import say, ticking

IMAGE_SIZE = 32
SHARDS = 16
QUALITIES = (75, 85, 95)


def main() -> None:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200_000, help="images")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="tars of JPEGs")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    options = parser.parse_args()
    shards = options.work / "shards"
    if not shards.exists():
        make_shards(shards, options.n, options.photos)
    result: dict[str, object] = {"n": options.n, "workers": options.workers}
    for n_shards in (1, 4, SHARDS):
        few, out = options.work / f"in{n_shards}", options.work / f"part{n_shards}"
        link_some(shards, few, n_shards)
        result[f"prepare, {n_shards} of {SHARDS}"] = {
            **measured(command(str(few), out, options.workers)),
            "images": PackedSet.open(out).manifest["n_images"],
        }
        palette = ["palette", str(out), f"{out}.npy", "--image-size", str(IMAGE_SIZE)]
        result[f"palette, {n_shards} of {SHARDS}"] = measured(igpt(*palette))
    result["killed"] = killed_and_continued(shards, options.work, options.workers)
    print(json.dumps(result, indent=2))


def pictures(photos: list[Path]) -> Iterator[Image.Image]:
    """CIFAR-10's images and those of the tars, mixed, without end."""
    cifar = open_data("cifar10", image_size=32).images("train")
    spans = [(path, m) for path in photos for m in read_files(path) if m.name.lower().endswith("g")]
    for i in itertools.count():
        if spans and i % 4 == 0:
            path, member = spans[i // 4 % len(spans)]
            with path.open("rb") as file:
                yield Image.fromarray(
                    read_image(os.pread(file.fileno(), member.size, member.start))
                )
        else:
            yield Image.fromarray(cifar[i % len(cifar)])


def make_shards(folder: Path, n: int, photos: list[Path]) -> None:
    """n JPEGs with labels in `SHARDS` tars."""
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    source = pictures(photos)
    with ticking("encoding") as ticker:
        for shard in range(SHARDS):
            with tarfile.open(part / f"{shard:03d}.tar", "w") as tar:
                for i in range(shard, n, SHARDS):
                    file = io.BytesIO()
                    next(source).save(file, "JPEG", quality=QUALITIES[i % len(QUALITIES)])
                    for suffix, data in (("jpg", file.getvalue()), ("cls", b"%d" % (i % 10))):
                        member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    ticker.update(i // SHARDS + shard * (n // SHARDS), n)
    part.replace(folder)


def igpt(*args: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "igpt", *args, "--json"]


def command(source: str, out: Path, workers: int) -> list[str]:
    """`igpt prepare` of a source."""
    options = ["--workers", str(workers), "--image-size", str(IMAGE_SIZE)]
    return igpt("prepare", source, str(out), *options)


def link_some(shards: Path, few: Path, n_shards: int) -> None:
    """A folder with the first shards."""
    few.mkdir(exist_ok=True)
    for path in sorted(shards.iterdir())[:n_shards]:
        (few / path.name).unlink(missing_ok=True)
        (few / path.name).symlink_to(path.resolve())


def measured(args: list[str]) -> dict[str, float]:
    """Seconds, of the clock and of all cores, and peak memory of a command and its processes."""
    start_s, start_core_s = time.monotonic(), core_seconds()
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL)
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, tree_bytes(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(args)} ended with status {process.returncode}")
    return {
        "seconds": round(time.monotonic() - start_s, 1),
        "core_seconds": round(core_seconds() - start_core_s, 1),
        "peak_mb": round(peak_bytes / 1e6),
    }


def core_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree_bytes(pid: int) -> int:
    """Memory of a process and its children, shared pages counted once (PSS)."""
    total = 0
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        for member in (pid, *map(int, children.read_text().split())):
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
            total += next(int(s.split()[1]) for s in rollup.splitlines() if s.startswith("Pss:"))
    except (OSError, StopIteration):
        pass  # a process that ended meanwhile
    return total * 1024


def killed_and_continued(shards: Path, work: Path, workers: int) -> dict[str, object]:
    """Kill a preparation about half-way, continue it, compare with the one that ran through."""
    out = work / "killed"
    process = subprocess.Popen(command(str(shards), out, workers), stdout=subprocess.DEVNULL)
    half = PackedSet.open(work / f"part{SHARDS}").manifest["n_images"] // 2
    while process.poll() is None and committed(out) < half:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = committed(out)
    say(f"killed with {kept} images committed")
    subprocess.run(command(str(shards), out, workers), check=True, stdout=subprocess.DEVNULL)
    same = PackedSet.open(out).digest == PackedSet.open(work / f"part{SHARDS}").digest
    return {"committed_when_killed": kept, "same_result": same}


def committed(out: Path) -> int:
    """Images that a continuation would not do again."""
    try:
        return int(json.loads((out / STATE).read_text())["progress"]["n_read"])
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    main()
