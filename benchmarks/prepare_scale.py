"""Prepares 200,000 JPEGs, kills it in the middle, goes on: speed, peak memory, equal result.

    python benchmarks/prepare_scale.py --n 200000 --work /tmp/scale --photos photos.tar tiny.tar

The JPEGs are CIFAR-10's images and those of the tars given, encoded anew at several qualities, in
a few WebDataset shards. Prints one JSON document; takes about 10 minutes on 2 cores.
"""

import argparse
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from igpt.images.decoding import Packing, pack_block
from igpt.images.files import open_image, read_image, unwarned
from igpt.images.packed import PackedSet
from igpt.images.packing import STATE
from igpt.images.prepare import open_data
from igpt.images.resize import CROP_SIZE, center_crop
from igpt.images.sources.source import Block
from igpt.images.sources.tars import read_members
from igpt.progress import say, ticking

IMAGE_SIZE = 32
SHARDS = 8
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
    for n_shards in (1, SHARDS // 2, SHARDS):
        result[f"peak_mb_{n_shards}_of_{SHARDS}"] = measured(
            shards, options.work / f"part{n_shards}", n_shards, options.workers
        )
    result["killed"] = killed_and_continued(shards, options.work, options.workers)
    for photos in options.photos:
        result[photos.name] = compared(photos)
    print(json.dumps(result, indent=2))


def pictures(photos: list[Path]) -> Iterator[Image.Image]:
    """CIFAR-10's images and those of the tars, mixed, without end."""
    cifar = open_data("cifar10", image_size=32).images("train")
    spans = [
        (path, m) for path in photos for m in read_members(path) if m.name.lower().endswith("g")
    ]
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


def command(source: str, out: Path, workers: int) -> list[str]:
    """`igpt prepare` of a source."""
    options = ["--workers", str(workers), "--image-size", str(IMAGE_SIZE), "--json"]
    return [sys.executable, "-m", "igpt", "prepare", source, str(out), *options]


def measured(shards: Path, out: Path, n_shards: int, workers: int) -> dict[str, float]:
    """Seconds and peak memory of preparing the first shards."""
    few = out.with_name(out.name + "-in")
    few.mkdir(exist_ok=True)
    for path in sorted(shards.iterdir())[:n_shards]:
        (few / path.name).unlink(missing_ok=True)
        (few / path.name).symlink_to(path.resolve())
    start_s = time.monotonic()
    process = subprocess.Popen(command(str(few), out, workers), stdout=subprocess.DEVNULL)
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, tree_bytes(process.pid))
        time.sleep(0.2)
    seconds = time.monotonic() - start_s
    n_images = PackedSet.open(out).manifest["n_images"]
    return {
        "images": n_images,
        "seconds": round(seconds, 1),
        "images_per_s": round(n_images / seconds),
        "peak_mb": round(peak_bytes / 1e6),
    }


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


def compared(photos: Path) -> dict[str, object]:
    """Images a second of processor time, one process: ours and a plain Pillow loop; and errors."""
    files = []
    with photos.open("rb") as file:
        for member in read_members(photos):
            if member.name.lower().endswith((".jpg", ".jpeg")):
                files.append(os.pread(file.fileno(), member.size, member.start))
    block = Block(images=files, keys=[str(i) for i in range(len(files))])
    exact = np.stack([reference(data) for data in files[:1000]])
    result: dict[str, object] = {"images": len(files)}
    works = {
        "plain": lambda: np.stack([plain(data) for data in files]),
        "full": lambda: pack_block(block, Packing(image_size=IMAGE_SIZE, reduced=False)).images,
        "reduced": lambda: pack_block(block, Packing(image_size=IMAGE_SIZE)).images,
    }
    for name, work in works.items():
        images, spans = None, []
        for _ in range(5):
            start_s = time.process_time()
            images = work()
            spans.append(time.process_time() - start_s)
        assert images is not None
        result[name] = {
            "images_per_core_s": round(len(files) / sorted(spans)[2]),
            "mean_error": round(float(np.abs(images[: len(exact)] - exact).mean()), 3),
        }
    return result


def plain(data: bytes) -> np.ndarray:
    """What one would write with Pillow: (S, S, 3) uint8."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    if short > CROP_SIZE:
        scale = CROP_SIZE / short
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BOX)
        short = CROP_SIZE
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def reference(data: bytes) -> np.ndarray:
    """Full decoding, exact areas, float64, never rounded: (S, S, 3)."""
    with unwarned(), open_image(data) as file:
        image = np.asarray(file.convert("RGB")).astype(np.float64)
    crop = center_crop(*image.shape[:2])
    rows = weights(crop.height, crop.resized[0], crop.top, crop.side)
    columns = weights(crop.width, crop.resized[1], crop.left, crop.side)
    return np.einsum("jh,hwc,kw->jkc", rows, image, columns, optimize=True)


def weights(n: int, resized: int, start: int, side: int) -> np.ndarray:
    """Shares of n pixels in each of `IMAGE_SIZE` cells of the crop: (S, n)."""
    edges = (start + np.arange(IMAGE_SIZE + 1) * side / IMAGE_SIZE) * n / resized
    left = np.maximum(edges[:-1, None], np.arange(n))
    right = np.minimum(edges[1:, None], np.arange(1, n + 1))
    shares = np.maximum(right - left, 0)
    return shares / shares.sum(1, keepdims=True)


if __name__ == "__main__":
    main()
