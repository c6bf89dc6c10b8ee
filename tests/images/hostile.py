"""Malformed images, archives, tables and arrays, made from good ones by a seed; and the trial.

    python -m tests.images.hostile N SEED

prepares N of them, each with `igpt prepare` in a folder of its own, under a limit of memory, and
prints what went wrong as a JSON list.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from igpt.cli.main import main
from tests.images.pictures import encoded, noise, tar_bytes

Rng = np.random.Generator
Files = dict[str, bytes]

MOST_S = 10
MOST_BYTES = 3 * 2**30
# What Pillow writes here; a build may lack the last ones.
KINDS = {
    "JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "PPM": ".ppm",
    "TGA": ".tga", "WEBP": ".webp", "JPEG2000": ".jp2", "AVIF": ".avif",
}  # fmt: skip


def damaged(data: bytes, rng: Rng) -> bytes:
    """Cut, changed in some bytes, doubled, or with a stretch that is lost, zeroed or random."""
    held = bytearray(data)
    at, stop = sorted(int(i) for i in rng.integers(0, len(held) + 1, 2))
    match int(rng.integers(7)):
        case 0:
            return data[:at]
        case 1:
            for i in rng.integers(0, len(held), rng.integers(1, 20)):
                held[i] ^= 1 << int(rng.integers(8))
        case 2:
            del held[at:stop]
        case 3:
            held[at:stop] = bytes(stop - at)
        case 4:
            held[at:stop] = rng.bytes(stop - at)
        case 5:
            held[at:at] = held[at:stop]
        case 6:  # in the head, where sizes stand
            for i in rng.integers(0, min(64, len(held)), 4):
                held[i] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(held)


def an_image(rng: Rng) -> tuple[str, bytes]:
    """A good image of some kind, and the ending of its name."""
    while True:
        kind = str(rng.choice(list(KINDS)))
        with contextlib.suppress(OSError, KeyError):
            return KINDS[kind], encoded(noise(20, 24, int(rng.integers(9))), kind)


def bad_images(rng: Rng) -> Files:
    """Images, each damaged in its own way; some under another kind's name."""
    files = {}
    for i in range(4):
        suffix, data = an_image(rng)
        if rng.random() < 0.2:
            suffix = str(rng.choice(list(KINDS.values())))
        files[f"{i}{suffix}"] = damaged(data, rng)
    return files


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bombs(rng: Rng) -> Files:
    """Small files that claim or unpack to much."""
    side = int(rng.integers(2**14, 2**31 - 1))
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(10**6)))
    good = encoded(noise(20, 20))
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**7), 1))
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**40}, 4, 4, 3), }}"
    npy = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode()
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy + bytes(10**6))
    choices: list[Files] = [
        {"a.png": good[:8] + head + body + png_chunk(b"IEND", b"")},
        {"a.png": good[:33] + text + good[33:]},
        {"a.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(noise(9, 9), "GIF")[10:]},
        {"a.npy": npy + bytes(100)},
        {"a.npz": held.getvalue()},
        {"a.ppm": b"P6 %d %d 255\n" % (side, side)},
        {"a.tif": b"II*\0\x08\0\0\0" + b"\x01\0" + rng.bytes(12) + b"\x08\0\0\0"},
    ]
    return choices[int(rng.integers(len(choices)))]


def bad_tar(rng: Rng) -> Files:
    """A tar that is damaged, or whose names and kinds lead elsewhere."""
    names = [f"{i:03d}{end}" for i in range(3) for end in (".png", ".cls")]
    held = {name: encoded(noise(16, 16)) if name.endswith("g") else b"1" for name in names}
    if rng.random() < 0.6:
        return {"a.tar": damaged(tar_bytes(held), rng)}
    traps = ["../out.png", "/tmp/igpt-hostile.png", "a/../../b.png", "000.png", "x" * 5000 + ".png"]
    for trap in rng.choice(traps, 2):
        held[str(trap)] = encoded(noise(16, 16))
    data = io.BytesIO(tar_bytes(held))
    with tarfile.open(fileobj=data, mode="a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"link{ord(kind)}.png")
            member.type, member.linkname, member.size = kind, "/etc/passwd", 0
            tar.addfile(member)
    return {"a.tar": data.getvalue()}


def bad_csv(rng: Rng) -> Files:
    """A CSV of wrong bytes, columns, paths or labels."""
    rows = [
        "a.png,0", "a.png,0", ",1", "../../../../etc/passwd,1", "/dev/zero,1", "/dev/stdin,2",
        "nothing.png,3", "a.png", "pipe.png,1", "folder,1", '"a.png,1', "a.png," + "9" * 400,
        "a.png\0,1", "a" * 200_000 + ",1", ".,1", "a.png,-1", "a.png,\u0661",
    ]  # fmt: skip
    lines = [str(row) for row in rng.choice(rows, 6)]
    head = str(rng.choice(["path,label", "path,label", "path,label,split", "label", "", "path"]))
    text = "\n".join([head, *lines]).encode()
    text = damaged(text, rng) if rng.random() < 0.4 else text
    return {"a.png": encoded(noise(16, 16)), "folder/b.png": b"x", "list.csv": text}


def bad_columns(rng: Rng) -> Files:
    """A parquet or Arrow file that is damaged, or has wrong cells."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = {"bytes": encoded(noise(16, 16)), "path": None}
    cells = [good, good, None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": ""}]
    chosen = [cells[int(i)] for i in rng.integers(0, len(cells), 6)]
    labels = [int(x) for x in rng.choice([0, 1, -1, 2**40], 6)]
    table = pa.table({"image": pa.array(chosen), "label": labels})
    held = io.BytesIO()
    is_arrow = rng.random() < 0.5
    if is_arrow:
        with pa.ipc.new_stream(held, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, held)
    data = held.getvalue()
    data = damaged(data, rng) if rng.random() < 0.8 else data
    return {"a.arrow" if is_arrow else "a.parquet": data}


def bad_arrays(rng: Rng) -> Files:
    """An .npz, .npy or idx file that is damaged, or would have to be unpickled."""
    held = io.BytesIO()
    images, labels = rng.integers(0, 256, (6, 9, 9, 3), dtype=np.uint8), np.arange(6)
    if rng.random() < 0.2:
        images = np.array([{"a": 1}], object)
    if rng.random() < 0.5:
        np.savez_compressed(held, images=images, labels=labels - int(rng.integers(3)))
        return {"a.npz": damaged(held.getvalue(), rng)}
    np.save(held, images)
    return {"a.npy": damaged(held.getvalue(), rng)}


MAKERS: tuple[Callable[[Rng], Files], ...] = (
    *(bad_images, bad_images, bombs, bad_tar, bad_csv, bad_columns, bad_arrays),
)


def trial(number: int, seed: int, place: Path) -> str:
    """What went wrong with one case, or nothing."""
    maker = MAKERS[number % len(MAKERS)]
    files = maker(np.random.default_rng([seed, number]))
    folder = place / "in"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if maker is bad_csv:
        os.mkfifo(folder / "pipe.png")
    single = maker not in (bad_images,) and len(files) == 1 and "png" not in next(iter(files))
    data = folder / next(iter(files)) if single else folder
    data = folder / "list.csv" if maker is bad_csv else data
    before = snapshot(place)
    out, err = io.StringIO(), io.StringIO()
    start_s = time.monotonic()
    command = ["prepare", str(data), str(place / "out"), "--image-size", "8", "--max-bad", "1"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([*command, "--workers", "1", "--upsample"])
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        return f"{error!r}"
    if time.monotonic() - start_s > MOST_S:
        return f"took {time.monotonic() - start_s:.0f} s"
    if snapshot(place) != before:
        return "wrote outside its folder"
    lines = err.getvalue().strip().splitlines()
    if status not in (0, 2) or (status == 2 and not lines[-1].startswith("igpt: error: ")):
        return f"status {status}: {lines[-1:]}"
    return ""


def snapshot(place: Path) -> dict[str, str]:
    """Every file below a place, but for the target's, and what it holds."""
    found = {}
    for path in sorted(place.rglob("*")):
        inner = path.relative_to(place).as_posix()
        if inner.split("/")[0] != "out":
            held = path.read_bytes() if path.is_file() else b""
            found[inner] = hashlib.sha256(held).hexdigest()
    return found


def trials(n: int, seed: int, place: Path) -> list[str]:
    """What went wrong in cases 0 to n - 1, by number and maker."""
    wrong = []
    for number in range(n):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            (Path(folder) / "in").mkdir()
            if problem := trial(number, seed, Path(folder)):
                wrong.append(f"{number} {MAKERS[number % len(MAKERS)].__name__}: {problem}")
    return wrong


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(trials(int(sys.argv[1]), int(sys.argv[2]), Path(place))))
