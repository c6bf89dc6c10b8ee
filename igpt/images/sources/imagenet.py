"""ImageNet (ILSVRC-2012) as downloaded: the official train and validation tars, never unpacked."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from igpt.errors import UserError
from igpt.images.sources.archive import read_files
from igpt.images.sources.entries import Entry
from igpt.images.sources.names import is_image_name
from igpt.images.sources.source import Block, BlockBuilder, Part, Source, Span
from igpt.images.splits import IMAGENET_VALID_FRACTION, TEST, TRAIN

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
            for image in _images(train, member):
                key = f"{member.name}/{image.name}"
                span = Span(train, image.start, image.size)
                yield from builder.add(span, key, label, TRAIN)
        for image in _images(folder / VALID_TAR) if has_valid else ():
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


def _images(path: Path, inside: Entry | None = None) -> Iterator[Entry]:
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
