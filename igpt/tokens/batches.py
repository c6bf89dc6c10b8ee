"""The stream of training batches: the batch of a step is a function of (seed, step, slot) alone."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from igpt import streams
from igpt.config import Augment
from igpt.errors import UserError
from igpt.images.augment import N_DRAWS, cropped, flipped
from igpt.tokens.order import Mixture, shuffled
from igpt.tokens.tokenizer import CroppedImages, ImageArray, Tokenizer


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one step, or those of some of its slots, as tokens."""

    tokens: NDArray[np.int64]
    """(B, T) int64."""
    labels: NDArray[np.int64] | None
    """(B,) class indices, -1 for an image without one; none where no image has one."""
    step: int
    """The step it belongs to, from 0."""
    ids: NDArray[np.int64]
    """(B,) which images they are; in a mixture the sources are counted through in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One set of images in a mixture."""

    images: ImageArray | CroppedImages
    """(N, S, S, 3) uint8; or random crops of them; or tokens (N, T) in their smallest type."""
    labels: NDArray[np.int64] | None = None
    """(N,) class indices, or none."""
    augment: Augment = "none"
    """Random changes, drawn anew each time an image comes."""
    weight: float = 1
    """Its share of the batches, relative to the other sources' weights."""
    name: str = "train"
    """Names its random order; each source of a mixture has another."""


class BatchStream:
    """Batches in a random order that is new each epoch and holds each image once.

    Nothing is kept between calls: any step, and any slots of it, can be asked for in any order by
    any number of workers, and entering at step 10^6 costs what step 0 does.
    """

    def __init__(
        self,
        images: ImageArray,
        labels: NDArray[np.int64] | None,
        tokenizer: Tokenizer | None,
        *,
        batch_size: int,
        seed: int,
        augment: Augment = "none",
        name: str = "train",
    ) -> None:
        """Stream one set of images.

        Args:
            images: (N, S, S, 3) uint8, or tokens (N, T) where there is no tokeniser.
            labels: (N,) class indices, or none.
            tokenizer: encodes the images; none where they are tokens already.
            batch_size: images a step, over all ranks and micro-batches.
            seed: of the run.
            augment: random changes to the images.
            name: of the images; two streams of one seed with different names are independent.

        Raises:
            UserError: no images, labels of another number, or an augmentation of tokens.
        """
        source = Source(images=images, labels=labels, augment=augment, name=name)
        self._set_up((source,), tokenizer, batch_size, seed)

    @classmethod
    def mixed(
        cls,
        sources: Sequence[Source],
        tokenizer: Tokenizer | None,
        *,
        batch_size: int,
        seed: int,
    ) -> Self:
        """Stream several sets in the exact proportions of their weights, spread evenly.

        Raises:
            UserError: as for one set; or names that are not different, or weights that are not
                above 0 or not in simple proportions.
        """
        if not sources:
            raise UserError("there are no sources to mix")
        stream = cls.__new__(cls)
        stream._set_up(tuple(sources), tokenizer, batch_size, seed)
        return stream

    def _set_up(
        self,
        sources: tuple[Source, ...],
        tokenizer: Tokenizer | None,
        batch_size: int,
        seed: int,
    ) -> None:
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise UserError(f"the sources are named {names}: give each a name of its own")
        for source in sources:
            n = len(source.images)
            if n == 0:
                raise UserError(f"there are no images to draw from in {source.name}")
            if source.labels is not None and len(source.labels) != n:
                raise UserError(f"{source.name} has {n} images but {len(source.labels)} labels")
            is_cropped = isinstance(source.images, CroppedImages)
            if source.augment == "imagenet" and not is_cropped:
                raise UserError(
                    f"the random crops of data.augment imagenet are no longer in {source.name}: "
                    "store them with igpt prepare --views and set data.augment to none"
                )
            holds_tokens = tokenizer is None or getattr(source.images, "ndim", 4) == 2
            if holds_tokens and source.augment != "none":
                raise UserError(
                    f"{source.name} holds tokens, which cannot be augmented: "
                    "set data.augment to none or prepare it as images"
                )
        self.batch_size = batch_size
        self._sources, self._tokenizer, self._seed = sources, tokenizer, seed
        self._mixture = Mixture([source.weight for source in sources])
        self._is_cropped = any(isinstance(source.images, CroppedImages) for source in sources)
        self._labelled = any(source.labels is not None for source in sources)
        self._first_id = np.cumsum([0, *(len(source.images) for source in sources)])

    def at(self, step: int, slots: slice | None = None) -> Batch:
        """The batch of a step, or only some slots of it.

        Args:
            step: from 0.
            slots: places in the batch, such as those of one rank; none: all of them.
        """
        places = np.arange(self.batch_size)[slots or slice(None)]
        which, turns = self._mixture.dealt(step * self.batch_size + places)
        ids = np.empty(len(places), np.int64)
        labels = np.full(len(places), -1)
        parts: list[tuple[NDArray[np.intp], NDArray[np.int64]]] = []
        for number, source in enumerate(self._sources):
            mine = np.flatnonzero(which == number)
            found = self._drawn(source, turns[mine])
            ids[mine] = self._first_id[number] + found
            if source.labels is not None:
                labels[mine] = source.labels[found]
            parts.append((mine, self._tokens(source, found, step, places[mine])))
        return Batch(_joined(parts), labels if self._labelled else None, step, ids)

    def prefetch(
        self,
        start_step: int,
        stop_step: int,
        slots: slice | None = None,
        *,
        threads: int | None = None,
        ahead: int = 4,
    ) -> Iterator[Batch]:
        """The batches of steps `start_step` to `stop_step` - 1, made ahead of their use.

        The threads end when the iterator does: used up, closed, or left by an exception. An error
        in one of them is raised here at its step.

        Args:
            start_step: the first step.
            stop_step: the step after the last.
            slots: as for `at`.
            threads: that make batches; numpy's loops run outside Python's lock. None: one, or
                two where one would leave processes that crop waiting.
            ahead: batches that wait at most.
        """
        threads = threads or (2 if self._is_cropped else 1)
        with ThreadPoolExecutor(threads, thread_name_prefix="igpt-batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for step in range(start_step, stop_step):
                    waiting.append(pool.submit(self.at, step, slots))
                    if len(waiting) > ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _drawn(self, source: Source, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images that come at these turns of a source, counted from the run's start."""
        n = len(source.images)
        epochs, places = np.divmod(turns, n)
        found = np.empty(len(turns), np.int64)
        for epoch in set(epochs.tolist()):
            now = epochs == epoch
            found[now] = shuffled(places[now], n, seed=self._seed, name=source.name, epoch=epoch)
        return found

    def _tokens(
        self, source: Source, ids: NDArray[np.int64], step: int, slots: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Tokens (k, T) int64 of the images `ids` in `slots`."""
        # The protocol's check is slow beside a small batch, and true of few streams.
        if self._is_cropped and isinstance(source.images, CroppedImages):
            assert self._tokenizer is not None
            images = source.images.crops(
                ids, seed=self._seed, name=source.name, step=step, slots=slots
            )
            return self._tokenizer.encode(images)
        images = np.asarray(cast(ImageArray, source.images)[ids])
        if self._tokenizer is None or images.ndim == 2:
            return images.astype(np.int64)
        if source.augment != "none":
            # Drawn for all slots, so that one's draws do not depend on which others are asked for.
            rng = streams.stream(self._seed, f"augment/{source.name}", step)
            draws = rng.random((self.batch_size, N_DRAWS))[slots]
            images = (flipped if source.augment == "flip" else cropped)(images, draws)
        return self._tokenizer.encode(images)


def _joined(parts: list[tuple[NDArray[np.intp], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """One array whose rows `mine` are `part`, for each (mine, part)."""
    if len(parts) == 1:
        return parts[0][1]
    lengths = {part.shape[1] for mine, part in parts if len(mine)}
    if len(lengths) != 1:
        raise UserError(f"the sources have images of {sorted(lengths)} tokens: prepare them alike")
    joined = np.empty((sum(len(mine) for mine, _ in parts), lengths.pop()), np.int64)
    for mine, part in parts:
        joined[mine] = part
    return joined
