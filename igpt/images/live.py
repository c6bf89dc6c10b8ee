"""Training images decoded each time they come, with a new random crop each time (paper §3.1).

The faithful recipe for ImageNet: shorter side random in [256, 384], random 224 x 224. It costs the
decoding of every image in every epoch; `igpt prepare --views` stores some crops instead.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from igpt.errors import UserError
from igpt.images.crop import crop_resize, enough_px, random_crop
from igpt.images.decode import decode_bytes
from igpt.images.packed.originals import Originals, no_files, originals_of, read_original
from igpt.images.packed.read import PackedSet
from igpt.images.sources.source import Original
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
    """Some images of a packed set, in its order, as random crops of the originals.

    Args:
        originals: the encoded images of the whole set.
        rows: (N,) int64, which of them.
        image_size: side S of the crops, in pixels.
        workers: processes that decode; 0: one a core.
    """

    def __init__(
        self, originals: Originals, rows: np.ndarray, image_size: int, *, workers: int = 0
    ) -> None:
        self._originals, self._rows, self._image_size = originals, rows, image_size
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
            originals = [self._originals.at(int(self._rows[ids[i]])) for i in some]
            draws = [Draw(seed, name, step, int(slots[i])) for i in some]
            results.append(self._pool.submit(crop_originals, originals, draws, self._image_size))
        try:
            return np.concatenate([result.result() for result in results])
        except BrokenProcessPool as error:
            raise UserError(
                "a process that decodes images died, perhaps for want of memory: resume the run, "
                "with fewer --workers"
            ) from error


def crop_originals(
    originals: Sequence[Original | None], draws: Sequence[Draw], image_size: int
) -> np.ndarray:
    """One random crop of each encoded image: (k, S, S, 3) uint8.

    Raises:
        UserError: one cannot be read.
    """
    crops = np.empty((len(originals), image_size, image_size, 3), np.uint8)
    enough = enough_px(image_size, is_cropped=True)
    for i, (original, draw) in enumerate(zip(originals, draws, strict=True)):
        if original is None:
            raise UserError("an image of the set was no file: set data.augment to none")
        try:
            image = decode_bytes(read_original(original), shorter_side=enough)
        except UserError as error:
            raise UserError(
                f"cannot crop {original.span.path} anew: {error}: put it back, or prepare the set "
                "again"
            ) from error
        rng = stream(draw.seed, f"live/{draw.name}", draw.step, draw.slot)
        crop = random_crop(image.height, image.width, rng)
        crops[i] = crop_resize(image.pixels, crop, image_size, scale=image.scale)
    return crops


def open_live(packed: PackedSet, rows: np.ndarray, *, workers: int = 0) -> LiveImages:
    """The originals behind images of a packed set, to be cropped anew.

    Args:
        packed: any, its originals where they were.
        rows: (N,) which of its images, as `PackedSet.rows` gives them.
        workers: processes that decode; 0: one a core.

    Raises:
        UserError: the images were no files, or moved or changed.
    """
    if "originals" not in packed.manifest:
        raise UserError(
            f"{packed.folder} was prepared by igpt 0.1, which did not note where its images are: "
            "delete it and prepare it again, or set data.augment to cifar, flip or none"
        )
    originals = originals_of(packed)
    if originals is None:
        raise UserError(no_files(packed.folder))
    originals.check(rows)
    return LiveImages(originals, rows, packed.image_size, workers=workers)
