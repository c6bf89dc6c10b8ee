"""Malformed images, archives, tables and arrays, made from good ones by a seed; and the trial.

    python -m tests.images.hostile N SEED

gives N of them, each in a folder of its own, to `igpt prepare` (models: to `igpt info`), and
prints what went wrong, and the most memory that was held, as JSON.
"""

import bz2
import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import resource
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from igpt.cli.main import main
from tests.images.pictures import encoded, noise, tar_bytes

Rng = np.random.Generator
Files = dict[str, bytes]

MOST_S = 10
MOST_BYTES = 1_500_000_000
"""Of memory; torch alone, which reads models, takes 0.3 GB of it."""
MOST_ADDRESSES = 8 * 2**30
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


# What a header that lies says in place of a small number.
LIES = (-1, -64, 0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**64, 10**30)


def lie(rng: Rng) -> int:
    """A number that no sound file holds there."""
    return LIES[int(rng.integers(len(LIES)))]


def tar_header(name: str, kind: bytes, size: int, link: str = "") -> bytes:
    """A header whose checksum fits, whatever it says."""
    info = tarfile.TarInfo(name[:90])
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    octal = 0 <= size < 8**11
    field = b"%011o\0" % size if octal else b"\x80" + (size % 2**88).to_bytes(11, "big")
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


def pax_records(**fields: object) -> bytes:
    """Metadata as pax stores it, its lengths right."""
    found = b""
    for key, value in fields.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while length != len(str(length)) + len(body):
            length = len(str(length)) + len(body)
        found += str(length).encode() + body
    return found


def lying_tar(rng: Rng) -> Files:
    """An archive whose headers agree with their checksums, and with nothing else."""
    good = encoded(noise(16, 16))
    parts = []
    for i in range(6):
        name, size = f"a/{i}.png", len(good)
        match int(rng.integers(9)):
            case 0:
                parts.append(tar_header(name, b"0", lie(rng)) + padded(good))
            case 1:
                extra = pax_records(size=lie(rng), path=f"a/{i}.png")
                parts.append(tar_header("x", b"x", len(extra)) + padded(extra))
                parts.append(tar_header(name, b"0", size) + padded(good))
            case 2:
                sparse = {"GNU__sparse__major": 1, "GNU__sparse__minor": 0,
                          "GNU__sparse__name": name, "GNU__sparse__realsize": lie(rng)}  # fmt: skip
                extra = pax_records(**sparse)
                table = padded(f"{lie(rng)}\n{lie(rng)}\n{lie(rng)}\n".encode())
                parts.append(tar_header("x", b"x", len(extra)) + padded(extra))
                parts.append(tar_header(name, b"0", 512 + size) + table + padded(good))
            case 3:
                spans = ",".join(str(lie(rng)) for _ in range(2 * int(rng.integers(1, 9))))
                extra = pax_records(
                    GNU__sparse__map=spans, GNU__sparse__size=lie(rng), GNU__sparse__numblocks=3
                )
                parts.append(tar_header("x", b"x", len(extra)) + padded(extra))
                parts.append(tar_header(name, b"0", size) + padded(good))
            case 4:
                parts.append(tar_header(name, b"S", size) + padded(good))
            case 5:
                kind = bytes([int(rng.choice(list(b"LKxXg")))])
                parts.append(tar_header("x", kind, abs(lie(rng)) % 2**21) + padded(good))
            case 6:
                target = str(rng.choice([f"a/{i}.png", "a/0.png", "../" * 9, f"a/{i - 1}.png"]))
                kind = bytes([int(rng.choice(list(b"12")))])
                parts.append(tar_header(name, kind, abs(lie(rng)), target))
            case 7:
                parts.append(bytes(1024 * int(rng.integers(1, 20))))
            case 8:
                label = str(rng.choice(["1", "[" * 900, '{"label": [1]}', '{"label": 1e999}']))
                ending = str(rng.choice(["cls", "json"]))
                parts.append(tar_header(f"a/{i}.{ending}", b"0", len(label)))
                parts.append(padded(label.encode()))
        parts.append(tar_header(f"b/{i}.png", b"0", size) + padded(good))
    data = b"".join(parts) + bytes(1024)
    pack = [bytes, bytes, gzip.compress, bz2.compress, lzma.compress][int(rng.integers(5))]
    return {"a.tar": pack(pack(data) if rng.random() < 0.05 else data)}


def lying_zip(rng: Rng) -> Files:
    """A zip whose directory, headers and checksums fit, but for what one of its fields claims."""
    good = encoded(noise(16, 16))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for i in range(6):
            name, data = f"a/{i}.png", good
            packing = int(rng.choice([0, 8, 12, 14]))  # stored, deflated, bzip2, lzma
            match int(rng.integers(8)):
                case 0:
                    name, data = f"a/{i}.zip", held.getvalue() or bytes(100)
                case 1:  # much of nothing
                    data, packing = bytes(2**26 if rng.random() < 0.1 else 10**6), 8
                case 2:
                    trap = ["../b.png", "/tmp/igpt-hostile.png", "a/0.png", "a\\..\\..\\c.png"]
                    name = str(rng.choice(trap))
                case 3:
                    name, data = f"a/{i}.json", b"[" * 10**5
                case 4:
                    name, data = f"a/{i}.tar", tar_bytes({"b.png": good})
            info = zipfile.ZipInfo(name)
            if rng.random() < 0.1:  # a link to what its content names
                info.external_attr, data = 0o120777 << 16, str(rng.choice(["0.png", name])).encode()
            with warnings.catch_warnings(action="ignore"):  # of names that come twice
                archive.writestr(info, data, packing)
            archive.writestr(f"b/{i}.png", good)
    return {"a.zip": lying_directory(held.getvalue(), rng)}


def lying_directory(data: bytes, rng: Rng) -> bytes:
    """A zip some of whose sizes, places and counts are changed, in its directory and headers."""
    changed = bytearray(data)
    # Where fields stand behind each mark: sizes and lengths, the place of a header, the counts.
    fields = {
        b"PK\1\2": ((8, 2), (10, 2), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)),
        b"PK\3\4": ((6, 2), (18, 4), (22, 4), (26, 2), (28, 2)),
        b"PK\5\6": ((8, 2), (10, 2), (12, 4), (16, 4)),
    }
    for _ in range(int(rng.integers(0, 4))):
        mark = list(fields)[int(rng.integers(3))]
        places = [found.start() for found in re.finditer(re.escape(mark), data)]
        at, size = fields[mark][int(rng.integers(len(fields[mark])))]
        at += places[int(rng.integers(len(places)))]
        changed[at : at + size] = (abs(lie(rng)) % 256**size).to_bytes(size, "little")
    return bytes(changed)


def lying_stream(rng: Rng) -> Files:
    """A small compressed archive that unpacks to much."""
    zeros = bytes(2**24)
    head = tar_header("a/0.png", b"0", int(rng.choice([2**20, 2**27, 2**34, 2**50])))
    packer = [gzip, bz2, lzma][int(rng.integers(3))]
    many = packer.compress(zeros) * int(rng.integers(1, 40))
    return {"a.tar.gz": packer.compress(head) + many}


def lying_arrays(rng: Rng) -> Files:
    """Arrays whose headers are well formed and claim what is not there."""
    shape = [6, 9, 9, 3][: int(rng.integers(1, 5))]
    shape[int(rng.integers(len(shape)))] = lie(rng)
    if rng.random() < 0.3:
        shape += [lie(rng)]
    descr = str(rng.choice(["|u1", "|u1", "|u1", "<f8", ">u2", "|V1000000", "|S999999", "|O"]))
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(shape)}, }}\n"
    npy = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode()
    npy += bytes(int(rng.choice([0, 1458, 10**6])))
    if rng.random() < 0.4:
        return {"a.npy": npy}
    held, labels = io.BytesIO(), io.BytesIO()
    np.save(labels, np.arange(6))
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy)
        archive.writestr("labels.npy", npy if rng.random() < 0.3 else labels.getvalue())
    return {"a.npz": held.getvalue()}


def lying_columns(rng: Rng) -> Files:
    """A sound table of unsound cells: large ones that a small file holds, and other types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = int(rng.choice([10**3, 10**6, 3 * 10**7]))
    cells = [bytes(size), encoded(noise(16, 16)), b"\xff" * size][: int(rng.integers(1, 4))]
    kind = [pa.binary(), pa.large_binary()][int(rng.integers(2))]
    table = pa.table({"image": pa.array(cells, kind), "label": [0] * len(cells)})
    held = io.BytesIO()
    pq.write_table(table, held, compression="zstd")
    return {"a.parquet": held.getvalue()}


def odd_value(rng: Rng) -> Any:
    """A value of JSON that no description holds."""
    odd = [
        *LIES,
        -1.5,
        1e308,
        float("nan"),
        "x",
        "",
        None,
        True,
        [],
        {},
        [1] * 9,
        {"a": 1},
        "9" * 500,
    ]
    return odd[int(rng.integers(len(odd)))]


@functools.cache
def sound_models() -> dict[str, Files]:
    """The files of small models that `igpt info` reads, by the form that they are in."""
    from igpt.formats.transformers import write_transformers
    from tests.networks import pixel_model

    found = {}
    with tempfile.TemporaryDirectory() as place:
        model = pixel_model(image_size=4)
        for form, folder in (
            ("igpt", model.save(Path(place) / "igpt")),
            ("transformers", write_transformers(model, Path(place) / "theirs")),
        ):
            found[form] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found


def lying_model(rng: Rng) -> Files:
    """A model folder that describes something else than its weights."""
    files = dict(sound_models()[str(rng.choice(["igpt", "transformers"]))])
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(["config.json", "config.json", "preprocessor_config.json"]))
        document = json.loads(files[name])
        place = document
        while True:
            key = str(rng.choice(list(place)))
            if isinstance(place[key], dict) and place[key] and rng.random() < 0.8:
                place = place[key]
                continue
            place[key] = odd_value(rng)
            break
        files[name] = json.dumps(document).encode()
    if rng.random() < 0.3:
        name = str(rng.choice(list(files)))
        files[name] = damaged(files[name], rng)
    return files


def lying_checkpoint(rng: Rng) -> Files:
    """A TensorFlow checkpoint whose checksums fit, and whose table is made up."""
    from tests.oracles.bundle import field, masked, varint

    def block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
        body = b"".join(
            varint(shared) + varint(len(own)) + varint(len(value)) + own + value
            for shared, own, value in entries
        )
        body += struct.pack("<II", 0, 1)
        return body + b"\0" + struct.pack("<I", masked(body + b"\0"))

    def number() -> int:
        return abs(lie(rng)) % 2**64

    entries = [(0, b"", field(1, int(rng.choice([1, 1, number()]))) or b"\x08\x01")]
    for i in range(int(rng.integers(1, 60))):
        shape = b"".join(field(2, field(1, number())) for _ in range(int(rng.integers(4))))
        value = field(1, int(rng.choice([1, 9, 3]))) + field(2, shape) + field(4, number())
        value += field(5, int(rng.choice([64, number()])))
        name = str(rng.choice(["model/wte", f"model/h{number()}/ln_1/g", "model/wpe", "x" * 50]))
        entries.append((int(rng.choice([0, 0, i, number()])), f"{name}{i}".encode(), value))
    first = block(entries)
    handle = varint(int(rng.choice([0, 0, number()]))) + varint(len(first) - 5)
    second, meta = block([(0, b"z", handle)] * int(rng.choice([1, 1, 30]))), block([])
    at = len(first)
    footer = varint(at + len(second)) + varint(len(meta) - 5) + varint(at) + varint(len(second) - 5)
    index = first + second + meta + footer.ljust(40, b"\0")
    index += struct.pack("<Q", 0xDB4775248B80FB57)
    centers = io.BytesIO()
    np.save(centers, np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3))
    return {
        "m.ckpt.index": index,
        "m.ckpt.data-00000-of-00001": bytes(256),
        "kmeans_centers.npy": centers.getvalue(),
    }


MAKERS: tuple[Callable[[Rng], Files], ...] = (
    *(bad_images, lying_tar, bombs, bad_tar, lying_arrays, bad_csv, lying_model, bad_columns),
    *(
        bad_images,
        lying_tar,
        lying_checkpoint,
        bad_arrays,
        lying_columns,
        lying_model,
        lying_stream,
        lying_zip,
    ),
)
_MODELS = (lying_model, lying_checkpoint)


def command_for(maker: Callable[[Rng], Files], names: list[str], place: Path) -> list[str]:
    """What is done with the files that a maker made."""
    folder = place / "in"
    if maker in _MODELS:
        return ["info", str(folder / "m.ckpt" if maker is lying_checkpoint else folder)]
    single = maker is not bad_images and len(names) == 1 and "png" not in names[0]
    data = folder / names[0] if single else folder
    data = folder / "list.csv" if maker is bad_csv else data
    command = ["prepare", str(data), str(place / "out"), "--image-size", "8", "--max-bad", "1"]
    return [*command, "--workers", "1", "--upsample"]


def trial(number: int, seed: int, place: Path) -> str:
    """What went wrong with one case, or nothing."""
    maker = MAKERS[number % len(MAKERS)]
    files = maker(np.random.default_rng([seed, number]))
    for name, data in files.items():
        (place / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "in" / name).write_bytes(data)
    if maker is bad_csv:
        os.mkfifo(place / "in" / "pipe.png")
    before = snapshot(place)
    out, err = io.StringIO(), io.StringIO()
    command = command_for(maker, list(files), place)
    start_s = time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(command)
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
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    with tempfile.TemporaryDirectory() as place:
        wrong = trials(int(sys.argv[1]), int(sys.argv[2]), Path(place))
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"wrong": wrong, "peak_bytes": peak_bytes}))
