"""Bytes as tokens: 256 values, three tokens a pixel, nothing lost (T = 3 S S)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from igpt.tokens.tokenizer import check_images, image_side


class RawTokens:
    """The second tokeniser: likelihoods under it are true bits per dimension."""

    kind: Literal["raw"] = "raw"
    n_colors = 256
    digest = "raw"

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Tokens (..., 3 S S) int64, red green blue of each pixel in raster order.

        Args:
            images: (..., S, S, 3) uint8.

        Raises:
            UserError: images of another type or shape.
        """
        return self.encode_compact(images).astype(np.int64)

    def encode_compact(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same as uint8: the image's own bytes where they lie in order."""
        check_images(images)
        return images.reshape(*images.shape[:-3], 3 * images.shape[-2] ** 2)

    def decode(self, tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The images (..., S, S, 3) uint8 of tokens (..., 3 S S).

        Raises:
            UserError: tokens outside 0 to 255, or a number of them that fits no square image.
        """
        side = image_side(tokens, n_colors=self.n_colors, per_pixel=3)
        return tokens.astype(np.uint8).reshape(*tokens.shape[:-1], side, side, 3)
