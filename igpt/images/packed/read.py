"""Packed sets: images at the input resolution as memory-mapped shards, beside a manifest.

A folder of

- `images-00000.npy` and so on: shards of (n, S, S, 3) uint8, each at most 1 GiB,
- `labels.npy`: (N,) int32, -1 for an image without a label,
- `splits.npy`: (N,) uint8, what the source says of each row (`igpt.images.splits`),
- `originals.npy` and more (`igpt.images.packed.originals`): the files that the images were made of,
- `rejects.csv`: what was left out, and why,
- `manifest.json`: sizes, classes, source, and the sha256 of every file; written last.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from igpt import caches, system
from igpt.errors import UserError
from igpt.files import FolderLock, cache_folder, writing
from igpt.images.packed.format import read_manifest
from igpt.images.splits import SPLITS, Split, draw_splits
from igpt.manifest import damaged
from igpt.streams import stream
from igpt.system import at_home

MAPPED_FROM = 2**20
"""Images from which on the rows of a split are not held in memory: 8 bytes each."""
Index = int | np.integer[Any] | slice | np.ndarray | list[int]


class PackedImages:
    """Images of one split, read from the shards only where they are asked for.

    Indexing with an int gives (S, S, 3) uint8, with a slice or an int array (k, S, S, 3).

    Args:
        shards: (n, S, S, 3) uint8 each.
        rows: (N,) int64, which rows of all shards together.
    """

    def __init__(self, shards: list[np.ndarray], rows: np.ndarray) -> None:
        self._shards = shards
        self._rows = rows
        self._starts = np.cumsum([0, *map(len, shards)])
        self.shape = (len(rows), *shards[0].shape[1:])
        self.dtype = np.dtype(np.uint8)
        self.ndim = 4

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index) -> np.ndarray:
        rows = self._rows[index]
        images = self._gather(np.atleast_1d(rows))
        if isinstance(index, slice):
            self._let_go()
        return images.reshape(self.shape[1:]) if np.ndim(rows) == 0 else images

    def _let_go(self) -> None:
        """Unmap what was read in passing: else a pass over the set would end with all of it."""
        for shard in self._shards:
            file = getattr(shard.base, "base", None)
            system.let_go(file)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        images: np.ndarray = self[:].astype(dtype or self.dtype, copy=False)
        return images

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        if len(self._shards) == 1:
            return np.asarray(self._shards[0][rows])
        held = np.searchsorted(self._starts, rows, side="right") - 1
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for shard in np.unique(held):
            here = held == shard
            images[here] = self._shards[shard][rows[here] - self._starts[shard]]
        return images


@dataclass(frozen=True)
class PackedSet:
    """A packed set that was opened: `PackedSet.open(folder)`."""

    folder: Path
    manifest: dict[str, Any]
    seed: int
    """Of the validation split."""
    valid_fraction: float
    """Share of the training images that validate."""
    most: int | None = None
    """Images of a split, drawn from all it has; none: all."""
    labelled_only: bool = False
    """Whether images without a label are left out."""

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a packed set, its sizes and its checksums checked.

        Raises:
            UserError: there is none, it is unfinished, or a file is missing, cut or changed.
        """
        folder = at_home(folder)
        manifest = read_manifest(folder)
        packed = cls(folder, manifest, manifest["seed"], manifest["valid_fraction"])
        packed._check_files()
        packed.verify()
        return packed

    def with_split(self, seed: int, valid_fraction: float) -> Self:
        """The same images, the validation split drawn anew; a source's own split stands."""
        return dataclasses.replace(self, seed=seed, valid_fraction=valid_fraction)

    def at_most(self, n: int | None) -> Self:
        """The same set with at most n images of each split, drawn at random, always the same."""
        return dataclasses.replace(self, most=n)

    @property
    def image_size(self) -> int:
        """Side S of every image, in pixels."""
        return int(self.manifest["image_size"])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, None for a set without labels."""
        names = self.manifest["classes"]
        return None if names is None else tuple(names)

    @property
    def source(self) -> str:
        """Where the images came from, in words."""
        some = "" if self.most is None else f", at most {self.most} images of a split"
        return str(self.manifest["source"]) + some

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of what is in it: every image, label, class name and split."""
        content = {
            key: self.manifest[key] for key in ("image_size", "classes", "views", "own_splits")
        }
        content["files"] = [entry["sha256"] for entry in self._entries()]
        content["split"] = [self.seed, self.valid_fraction]
        if self.most is not None:
            content["most"] = self.most
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def n(self, split: Split) -> int:
        """How many images a split has."""
        return len(self.rows(split))

    def check_has(self, split: Split) -> None:
        """Refuse a set of which a split is empty.

        Raises:
            UserError: it is; the message says which are not.
        """
        if not self.n(split):
            held = ", ".join(f"{other} {self.n(other)}" for other in SPLITS if self.n(other))
            raise UserError(
                f"{self.source} has no {split} images ({held}): give data that has some"
            )

    def labels(self, split: Split) -> np.ndarray | None:
        """(n,) int64 class of every image of a split, -1: it has none; None: the set has none."""
        if self.classes is None:
            return None
        labels: np.ndarray = self._labels[self.rows(split)].astype(np.int64)
        return labels

    def images(self, split: Split) -> PackedImages:
        """Images of a split, (n, S, S, 3) uint8, read when indexed."""
        return self.images_at(self.rows(split))

    def images_at(self, rows: np.ndarray) -> PackedImages:
        """Images by their (n,) places among all that are stored."""
        return PackedImages(self._shards, rows)

    def rows(self, split: Split) -> np.ndarray:
        """(n,) int64 places of a split's images among all that are stored."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split}: choose from {', '.join(SPLITS)}")
        large = int(self.manifest["n_images"]) > MAPPED_FROM
        rows = self._mapped_rows(split) if large else self._drawn_rows(self._codes, split)
        if self.most is None or self.most >= len(rows):
            return rows
        return np.sort(stream(0, f"at-most/{split}").permutation(rows)[: self.most])

    def trained_rows(self, *, fold_validation: bool) -> np.ndarray:
        """(n,) int64: places of the images that train, the validation images too where folded."""
        rows = self.rows("train")
        return np.concatenate([rows, self.rows("valid")]) if fold_validation else rows

    def trained_images(self, *, fold_validation: bool) -> PackedImages:
        """These images, as they were packed."""
        return self.images_at(self.trained_rows(fold_validation=fold_validation))

    def _drawn_rows(self, codes: np.ndarray, split: Split) -> np.ndarray:
        rows = np.flatnonzero(codes == SPLITS.index(split))
        return rows[self._labels[rows] >= 0] if self.labelled_only else rows

    def _mapped_rows(self, split: Split) -> np.ndarray:
        """The same from a file in the cache, so that a process holds as much of any set.

        The first process draws the splits and writes all files; the ranks beside it wait.
        """
        digest = dataclasses.replace(self, most=None).digest
        key = hashlib.sha256(f"{digest} {self.labelled_only}".encode()).hexdigest()[:32]
        folder = cache_folder() / "rows" / key
        path = folder / f"{split}.npy"
        if not path.is_file():
            with FolderLock(folder, wait=True):
                codes = np.empty(0) if path.is_file() else self._draw()
                for name in () if path.is_file() else SPLITS:
                    with writing(folder / f"{name}.npy") as part:
                        rows = self._drawn_rows(codes, name)
                        held = np.lib.format.open_memmap(part, "w+", rows.dtype, rows.shape)
                        held[:] = rows
        caches.used(folder)
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    def labelled(self) -> Self:
        """The same set with the images that have a label alone, where some have one."""
        has_some = self.classes is not None and any((self._labels >= 0).tolist())
        return dataclasses.replace(self, labelled_only=has_some)

    def verify(self) -> None:
        """Compare every file with its checksum: once a machine, and after any change.

        Raises:
            UserError: a file was changed.
        """
        entries = self._entries()
        if originals := self.manifest.get("originals"):
            entries += [originals["rows"], originals["names"]]
        try:
            name = damaged(self.folder, {entry["file"]: entry["sha256"] for entry in entries})
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        if name is not None:
            raise UserError(
                f"{self.folder / name} does not match its checksum: restore it, or delete "
                f"{self.folder} and prepare it again"
            )

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        return [self._map(entry) for entry in self.manifest["shards"]]

    @cached_property
    def _labels(self) -> np.ndarray:
        return self._map(self.manifest["labels"])

    @cached_property
    def _codes(self) -> np.ndarray:
        return self._draw()

    def _draw(self) -> np.ndarray:
        """The split of every stored row: (N,) uint8."""
        return draw_splits(
            self._labels,
            self._map(self.manifest["splits"]),
            seed=self.seed,
            valid_fraction=self.valid_fraction,
            own=frozenset(self.manifest["own_splits"]),
            views=self.manifest["views"],
        )

    def _entries(self) -> list[dict[str, Any]]:
        return [*self.manifest["shards"], self.manifest["labels"], self.manifest["splits"]]

    def _map(self, entry: dict[str, Any]) -> np.ndarray:
        return np.asarray(np.load(self.folder / entry["file"], mmap_mode="r"))

    def _check_files(self) -> None:
        side, n = self.image_size, 0
        for entry in self._entries():
            path = self.folder / entry["file"]
            is_shard = entry in self.manifest["shards"]
            wanted = (entry["n"], side, side, 3) if is_shard else (entry["n"],)
            n += entry["n"] if is_shard else 0
            try:
                shape = np.load(path, mmap_mode="r").shape
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is missing or cut: prepare {self.folder} again") from error
            if shape != wanted:
                raise UserError(f"{path} holds {shape}, not {wanted}: prepare it again")
        if not n == self.manifest["labels"]["n"] == self.manifest["splits"]["n"]:
            raise UserError(f"{self.folder} has shards, labels and splits of unlike lengths")
