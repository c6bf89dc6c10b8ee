"""Training images decoded each time they come, with a new random crop each time (paper §3.1).

The faithful recipe for ImageNet: shorter side random in [256, 384], random 224 x 224. It costs the
decoding of every image in every epoch; `igpt prepare --views` stores some crops instead.
"""

import csv
import math
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from igpt.errors import UserError
from igpt.images.decoding import REDUCED_MARGIN, read_span
from igpt.images.files import decode, open_image, unwarned
from igpt.images.packed import PackedSet
from igpt.images.resize import CROP_SIZE, RANDOM_SIDES, crop_resize, random_crop
from igpt.images.sources.find import open_source
from igpt.images.sources.source import WHOLE, Span
from igpt.images.workers import n_workers, worker_pool
from igpt.streams import stream


@dataclass(frozen=True, slots=True)
class Draw:
    """Where in the run an image comes: its crop depends on nothing else."""

    seed: int
    name: str
    step: int
    slot: int


class LiveImages:
    """The training images of a packed set, in its order, as random crops of the originals.

    Args:
        spans: the encoded images.
        image_size: side S of the crops, in pixels.
        workers: processes that decode; 0: one a core.
    """

    def __init__(self, spans: list[Span], image_size: int, *, workers: int = 0) -> None:
        self._paths = sorted({span.path for span in spans})
        number = {path: i for i, path in enumerate(self._paths)}
        # Arrays, not objects: a hundred million spans would not fit.
        self._path = np.array([number[span.path] for span in spans], np.int32)
        self._start = np.array([span.start for span in spans], np.int64)
        self._size = np.array([-1 if s.size is None else s.size for s in spans], np.int64)
        self._image_size = image_size
        self._workers = n_workers(workers)
        self._pool = worker_pool(self._workers)
        self.shape = (len(spans), image_size, image_size, 3)

    def __len__(self) -> int:
        return len(self._path)

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

    def crops(self, ids: np.ndarray, draws: list[Draw]) -> np.ndarray:
        """One random crop of each image: (k,) ids -> (k, S, S, 3) uint8.

        The same for the same draws, whatever the number of processes.

        Raises:
            UserError: an image can no longer be read.
        """
        results: list[Future[np.ndarray]] = []
        for some in np.array_split(np.arange(len(ids)), self._workers):
            spans = [self._span(int(ids[i])) for i in some]
            chosen = [draws[i] for i in some]
            results.append(self._pool.submit(crop_spans, spans, chosen, self._image_size))
        try:
            return np.concatenate([result.result() for result in results])
        except BrokenProcessPool as error:
            raise UserError(
                "a process that decodes images died, perhaps for want of memory: resume the run"
            ) from error

    def _span(self, i: int) -> Span:
        size = int(self._size[i])
        return Span(self._paths[self._path[i]], int(self._start[i]), None if size < 0 else size)


def crop_spans(spans: list[Span], draws: list[Draw], image_size: int) -> np.ndarray:
    """One random crop of each encoded image: (k, S, S, 3) uint8.

    Raises:
        UserError: one cannot be read.
    """
    crops = np.empty((len(spans), image_size, image_size, 3), np.uint8)
    enough = math.ceil(REDUCED_MARGIN * image_size * RANDOM_SIDES[1] / CROP_SIZE)
    with unwarned():
        for i, (span, draw) in enumerate(zip(spans, draws, strict=True)):
            try:
                with open_image(read_span(span)) as file:
                    image = decode(file, shorter_side=enough)
            except UserError as error:
                raise UserError(
                    f"cannot read {span.path}: {error}: it changed since it was prepared"
                ) from error
            rng = stream(draw.seed, f"live/{draw.name}", draw.step, draw.slot)
            crop = random_crop(image.height, image.width, rng)
            crops[i] = crop_resize(image.pixels, crop, image_size, scale=image.scale)
    return crops


def open_live(data: str, packed: PackedSet, *, workers: int = 0) -> LiveImages:
    """The originals behind the training split of a set that `open_data` prepared of the same DATA.

    Args:
        data: what the command line calls DATA: a folder, tars, a CSV.
        packed: the set prepared of it; image i here is image i of its training split.
        workers: processes that decode; 0: one a core.

    Raises:
        UserError: the images are not encoded files, or are not those that were prepared.
    """
    rejected = set(_rejected(packed.folder / "rejects.csv"))
    spans = []
    for block in open_source(data).blocks(WHOLE):
        for image, key in zip(block.images, block.keys, strict=True):
            if not isinstance(image, Span):
                raise UserError(
                    f"{data} has no image files to crop anew: "
                    "use data.augment cifar, or store crops with igpt prepare --views"
                )
            if key not in rejected:
                spans.append(image)
    if len(spans) != packed.manifest["n_images"]:
        raise UserError(f"{data} changed since {packed.folder} was prepared: prepare it again")
    chosen = [spans[row] for row in packed.rows("train")]
    return LiveImages(chosen, packed.image_size, workers=workers)


def _rejected(path: Path) -> Iterator[str]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from (row[0] for row in csv.reader(file))
