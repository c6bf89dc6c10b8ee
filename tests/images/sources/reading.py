"""Reading a whole source, for tests of the readers."""

from dataclasses import dataclass, field

import numpy as np

from igpt.images.packed.rows import Packing, pack_block
from igpt.images.sources.source import WHOLE, Part, Source


@dataclass
class Contents:
    """Everything that a source gives."""

    images: np.ndarray
    """(n, S, S, 3) uint8."""
    labels: list[int]
    codes: list[int]
    rejects: dict[str, str] = field(default_factory=dict)
    """Reason by name."""


def read(source: Source, size: int = 8, part: Part = WHOLE) -> Contents:
    """Every image of a source at `size`, as preparing would store it."""
    packed = [pack_block(block, Packing(image_size=size)) for block in source.blocks(part)]
    return Contents(
        np.concatenate([p.images for p in packed]),
        [int(label) for p in packed for label in p.labels],
        [int(code) for p in packed for code in p.codes],
        dict(reject for p in packed for reject in p.rejects),
    )
