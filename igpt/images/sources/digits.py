"""scikit-learn's handwritten digits: the set that needs no download."""

from collections.abc import Iterator

import numpy as np

from igpt.images.sources.source import Block, Part, Source, array_blocks
from igpt.images.splits import TEST, TRAIN

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
