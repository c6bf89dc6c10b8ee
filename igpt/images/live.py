"""Training images decoded each time they come, with a new random crop each time (paper §3.1).

The faithful recipe for ImageNet: shorter side random in [256, 384], random 224 x 224. It costs the
decoding of every image in every epoch; `igpt prepare --views` stores some crops instead.
"""

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from igpt.errors import UserError
from igpt.images.crop import CROP_SIZE, RANDOM_SIDES, crop_resize, random_crop
from igpt.images.decode import decode_bytes
from igpt.images.packed.read import PackedSet
from igpt.images.packed.rows import REDUCED_MARGIN
from igpt.images.sources.find import open_source
from igpt.images.sources.layout import DUPLICATE
from igpt.images.sources.source import WHOLE, Span, read_span
from igpt.images.workers import n_workers, worker_pool
from igpt.streams import stream


@dataclass(frozen=True, slots=True)
class Draw:
    """Where in the run an image comes: its crop depends on nothing else."""

    seed: int
    name: str
    step: int
    slot: int


class Spans:
    """Encoded images as columns: a hundred million objects would not fit in memory."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._number: dict[str, int] = {}
        self._path, self._start, self._size = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._path)

    def append(self, span: Span) -> None:
        """Add one behind the others."""
        path = str(span.path)
        number = self._number.setdefault(path, len(self._paths))
        if number == len(self._paths):
            self._paths.append(path)
        self._path.append(number)
        self._start.append(span.start)
        self._size.append(-1 if span.size is None else span.size)

    def at(self, i: int) -> Span:
        """The i-th."""
        size = self._size[i]
        return Span(Path(self._paths[self._path[i]]), self._start[i], None if size < 0 else size)


class LiveImages:
    """Some images of a packed set, in its order, as random crops of the originals.

    Args:
        spans: the encoded images of the whole set.
        rows: (N,) int64, which of them.
        image_size: side S of the crops, in pixels.
        workers: processes that decode; 0: one a core.
    """

    def __init__(
        self, spans: Spans, rows: np.ndarray, image_size: int, *, workers: int = 0
    ) -> None:
        self._spans, self._rows, self._image_size = spans, rows, image_size
        self._workers = n_workers(workers)
        # They start when a thread first asks for crops, so they cannot be forked.
        self._pool = worker_pool(self._workers, method="spawn")

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def crops(
        self, ids: np.ndarray, *, seed: int, name: str, step: int, slots: np.ndarray
    ) -> np.ndarray:
        """One random crop of each image, the same whatever the number of processes.

        Args:
            ids: (k,) which images.
            seed: of the run.
            name: of the images; with the next two it names the random stream of each crop.
            step: of the run.
            slots: (k,) places in its batch.

        Returns:
            (k, S, S, 3) uint8.

        Raises:
            UserError: an image can no longer be read.
        """
        results: list[Future[np.ndarray]] = []
        for some in np.array_split(np.arange(len(ids)), min(self._workers, max(1, len(ids)))):
            spans = [self._spans.at(int(self._rows[ids[i]])) for i in some]
            draws = [Draw(seed, name, step, int(slots[i])) for i in some]
            results.append(self._pool.submit(crop_spans, spans, draws, self._image_size))
        try:
            return np.concatenate([result.result() for result in results])
        except BrokenProcessPool as error:
            raise UserError(
                "a process that decodes images died, perhaps for want of memory: resume the run, "
                "with fewer --workers"
            ) from error


def crop_spans(spans: Sequence[Span], draws: Sequence[Draw], image_size: int) -> np.ndarray:
    """One random crop of each encoded image: (k, S, S, 3) uint8.

    Raises:
        UserError: one cannot be read.
    """
    crops = np.empty((len(spans), image_size, image_size, 3), np.uint8)
    enough = math.ceil(REDUCED_MARGIN * image_size * RANDOM_SIDES[1] / CROP_SIZE)
    for i, (span, draw) in enumerate(zip(spans, draws, strict=True)):
        try:
            image = decode_bytes(read_span(span), shorter_side=enough)
        except UserError as error:
            raise UserError(
                f"cannot read {span.path}: {error}: it changed since it was prepared"
            ) from error
        rng = stream(draw.seed, f"live/{draw.name}", draw.step, draw.slot)
        crop = random_crop(image.height, image.width, rng)
        crops[i] = crop_resize(image.pixels, crop, image_size, scale=image.scale)
    return crops


def open_live(data: str, packed: PackedSet, rows: np.ndarray, *, workers: int = 0) -> LiveImages:
    """The originals behind images of a set that `open_data` prepared of the same DATA.

    Args:
        data: what the command line calls DATA: a folder, tars, a CSV.
        packed: the set prepared of it.
        rows: (N,) which of its images, as `PackedSet.rows` gives them.
        workers: processes that decode; 0: one a core.

    Raises:
        UserError: the images are not encoded files, or are not those that were prepared.
    """
    if packed.manifest["views"]:
        raise UserError(
            f"{packed.folder} holds random crops already: set data.augment to none, or pass the "
            "images themselves as DATA"
        )
    rejected = set(_rejected(packed.folder / "rejects.csv"))
    spans = Spans()
    for block in open_source(data).blocks(WHOLE):
        for image, key in zip(block.images, block.keys, strict=True):
            if not isinstance(image, Span):
                raise UserError(
                    f"{data} has no image files to crop anew: set data.augment to cifar, flip or "
                    "none, or store crops with igpt prepare --views"
                )
            if not rejected or _as_written(key) not in rejected:
                spans.append(image)
    if len(spans) != packed.manifest["n_images"]:
        raise UserError(f"{data} changed since {packed.folder} was prepared: prepare it again")
    return LiveImages(spans, rows, packed.image_size, workers=workers)


def _as_written(key: str) -> str:
    """A name as the table of rejects holds it."""
    return key.encode(errors="backslashreplace").decode()


def _rejected(path: Path) -> Iterator[str]:
    """Names of images that were read and left out; a repeated name is that of one kept."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from (row[0] for row in csv.reader(file) if row[-1] != DUPLICATE)
