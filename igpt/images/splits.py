"""Which images train, validate and test: as the source's names say, else drawn by seed.

A folder, a file or a cell says a split by one of the words of `SPLIT_WORDS`, alone or set off by
anything that is no letter: `train`, `toy-train.arrow`, `val_0003.tar`, `data/test-00000-of-00001`.
Capitals set words off too (`trainA`). Of a file's name and the folders above it, the nearest that
says one counts; a name that says two says none. A folder or a cell that is more than such a word
(`train2017`, `toy-train`) says one by its first or last, and only where all beside it do: classes
may have such names. Names are believed only where a training split is among several: one that is
alone divides nothing, and that is said (`said_alone`). An image's own name says one by its first or
last word, and is believed only where the names of all images do (`train_1.png`, `test_0001.png`): a
photograph of a train has the same name. Where the source has a validation split but no test split,
the paper uses it as such (§3.1).

What the names leave open is drawn by seed, the same share of every class.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from igpt.errors import UserError
from igpt.streams import stream

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
TRAIN, VALID, TEST, UNUSED = range(4)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALID),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
"""The code that each word stands for, in any case."""
COLUMN_NAMES = ("split", "set", "subset", "partition")
"""Names of columns that hold one, the first that is there wins; in lower case."""
VALID_FRACTION = 0.1
"""The paper's share for every set but ImageNet (§3.1)."""
IMAGENET_VALID_FRACTION = 0.04


def split_codes(names: Iterable[str]) -> dict[str, int]:
    """The code of every name that is one of the words, else of all where each has one at an end.

    Empty unless names are to be believed.
    """
    words = {name: name.strip().lower() for name in names}
    alone = {name: SPLIT_WORDS[word] for name, word in words.items() if word in SPLIT_WORDS}
    at_ends = {name: code for name in words if (code := _code_at_ends(name)) is not None}
    return _believed(alone) or (_believed(at_ends) if len(at_ends) == len(words) else {})


def codes_of_cells(cells: Iterable[str], name: str) -> dict[str, int]:
    """`split_codes` of what a column of splits holds; empty cells train.

    Args:
        cells: every different one.
        name: of the source, for the error.

    Raises:
        UserError: some say a split and others say something else.
    """
    said = {cell for cell in cells if cell}
    codes = split_codes(said)
    unknown = said - codes.keys() - {"train"}
    if unknown and any(map(split_words, said)):
        raise UserError(
            f"{name}: unknown split {min(unknown)!r}: write train (always), valid and test"
        )
    return codes


def file_codes(names: Collection[str]) -> dict[str, int]:
    """The code of every file, by its relative name with `/` between folders.

    Files that say nothing train. Empty unless names are to be believed.
    """
    said = {name: code for name in names if (code := _said(name)) is not None}
    codes = _believed(said)
    return {name: codes.get(name, TRAIN) for name in names} if codes else {}


def codes_of_files(paths: Sequence[Path]) -> dict[Path, int]:
    """`file_codes` of files that may lie apart: the folders that hold all of them mean nothing."""
    top = Path(os.path.commonpath([path.parent for path in paths]))
    names = {path: path.relative_to(top).as_posix() for path in paths}
    said = file_codes(list(names.values()))
    return {path: said[name] for path, name in names.items()} if said else {}


def image_code(name: str) -> int | None:
    """The code that the name of an image, without its folders, says; None: it says none."""
    return _code_at_ends(os.path.splitext(name)[0])  # noqa: PTH122


def _code_at_ends(name: str) -> int | None:
    words = _words(name)
    found = {SPLIT_WORDS[word] for word in (*words[:1], *words[-1:]) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def codes_of_images(said: Mapping[int | None, int]) -> dict[int, int]:
    """The code of each that images' names say; empty unless the names are to be believed.

    Args:
        said: images by what `image_code` makes of their names.
    """
    if said.get(None):
        return {}
    codes = _believed({str(code): code for code, n in said.items() if n and code is not None})
    return {int(name): code for name, code in codes.items()}


def _believed(codes: dict[str, int]) -> dict[str, int]:
    if TRAIN not in codes.values() or len(set(codes.values())) < 2:
        return {}
    if TEST not in codes.values():
        return {name: TEST if code == VALID else code for name, code in codes.items()}
    return codes


def split_words(name: str) -> list[str]:
    """The words of a name that say a split."""
    return [word for word in _words(name) if word in SPLIT_WORDS]


def _words(name: str) -> list[str]:
    """Set off by anything that is no letter, and by a capital behind a small one."""
    return re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _said(name: str) -> int | None:
    for part in reversed(name.split("/")):
        found = {SPLIT_WORDS[word] for word in split_words(part)}
        if len(found) == 1:
            return found.pop()
    return None


def said_of_splits(where: str, counts: dict[int, int]) -> str:
    """The line that says which splits a source brings, and what from."""
    parts = ", ".join(f"{SPLITS[code]} {n}" for code, n in sorted(counts.items()))
    return f"splits: {parts}, by {where}"


def said_alone(names: Iterable[str]) -> tuple[str, ...]:
    """The line that says that names of a split are not believed, where there are such.

    Args:
        names: of folders or files beside one another.
    """
    words = {word for name in names for word in split_words(name)}
    if split_codes(words) or {SPLIT_WORDS[word] for word in words} <= {TRAIN}:
        return ()
    return (
        f"splits: drawn, as {', '.join(sorted(words))} in the names divides nothing: "
        "give another folder or file that is named train",
    )


def stratified(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """A seeded choice of round(fraction * n) images that takes its share of every class.

    Args:
        labels: (n,) int, any values; equal ones are a class.
        fraction: share of all images, 0 to 1.
        rng: what draws.

    Returns:
        (n,) bool. A class of m images gives fraction * m, rounded up or down.
    """
    n = len(labels)
    order = rng.permutation(n)
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, first, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    quotas = np.floor(fraction * sizes).astype(np.int64)
    missing = round(fraction * n) - int(quotas.sum())
    # The classes that lost most by rounding down give one more.
    remainders = fraction * sizes - quotas
    quotas[np.argsort(-remainders, kind="stable")[: max(0, missing)]] += 1
    rank = np.arange(n) - np.repeat(first, sizes)
    chosen = np.zeros(n, bool)
    chosen[by_class[rank < np.repeat(quotas, sizes)]] = True
    return chosen


def draw_splits(
    labels: np.ndarray,
    codes: np.ndarray,
    *,
    seed: int,
    valid_fraction: float,
    own: frozenset[int],
    views: int,
) -> np.ndarray:
    """The split of every stored row: a source's own splits stand, what it lacks is drawn.

    Validation is drawn from the training images by seed. A labelled source without a test split
    gives up the same share for one, the same whatever the seed. Where `views` random crops of
    each training image are stored behind its centre crop, training gets the crops, validation the
    centre, and all rows of an image stay together.

    Args:
        labels: (n,) int, -1 where there is none.
        codes: (n,) uint8, `TRAIN`, `VALID` or `TEST` as the source says.
        seed: of the validation draw.
        valid_fraction: share of the training images.
        own: codes of the splits that the source brings itself.
        views: random crops stored of each training image.

    Returns:
        (n,) uint8, `UNUSED` for rows that are in no split.
    """
    rows = np.flatnonzero(codes == TRAIN)[:: 1 + views]
    image_codes = np.full(len(rows), TRAIN, np.uint8)
    if TEST not in own and (labels >= 0).any():
        test = stratified(labels[rows], valid_fraction, stream(0, "split/test"))
        image_codes[test] = TEST
    if VALID not in own:
        pool = np.flatnonzero(image_codes == TRAIN)
        valid = stratified(labels[rows[pool]], valid_fraction, stream(seed, "split/valid"))
        image_codes[pool[valid]] = VALID
    result = codes.copy()
    result[rows] = image_codes
    if views:
        trains = image_codes == TRAIN
        result[rows[trains]] = UNUSED
        for view in range(1, views + 1):
            result[rows + view] = np.where(trains, TRAIN, UNUSED)
    return result
