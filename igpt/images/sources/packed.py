"""A packed set as a source, to make a smaller one of it."""

from collections.abc import Iterator

import numpy as np

from igpt.errors import UserError
from igpt.images.packed.originals import originals_of
from igpt.images.packed.read import PackedSet
from igpt.images.sources.source import Block, Part, Source, block_length
from igpt.images.splits import SPLITS, Split


def open_packed(packed: PackedSet) -> Source:
    """The images of a packed set, its splits kept as they are.

    Raises:
        UserError: it holds random crops, which have no single size.
    """
    if packed.manifest["views"]:
        raise UserError(f"{packed.folder} holds random crops: prepare its source again instead")

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        for code, split in enumerate(SPLITS):
            yield from _blocks(packed, split, code)

    return Source(
        name=f"{packed.source} at {packed.image_size} pixels",
        blocks=blocks,
        classes=packed.classes,
        source_px=packed.manifest.get("source_px", 0),
        own_splits=frozenset(code for code, split in enumerate(SPLITS) if packed.n(split)),
        n_images=sum(packed.n(split) for split in SPLITS),
    )


def _blocks(packed: PackedSet, split: Split, code: int) -> Iterator[Block]:
    images, labels, places = packed.images(split), packed.labels(split), packed.rows(split)
    originals = originals_of(packed)
    step = block_length(3 * packed.image_size**2)
    for start in range(0, len(images), step):
        rows = np.arange(start, min(start + step, len(images)))
        yield Block(
            images=images[rows],
            keys=[f"{split}/{row}" for row in rows],
            labels=None if labels is None else labels[rows],
            originals=[] if originals is None else [originals.at(int(i)) for i in places[rows]],
            code=code,
        )
