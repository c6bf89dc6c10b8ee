"""The value of the painter, which comes from a browser and so is checked before use."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Self

import numpy as np

from igpt.errors import UserError


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture at the model's size and which of its pixels are to be drawn anew."""

    pixels: np.ndarray
    """(S, S, 3) uint8."""
    keep: np.ndarray
    """(S, S) bool: False where a pixel is hidden."""

    def dump(self) -> str:
        """The text that `painter.js` shows."""
        return json.dumps(
            {
                "side": len(self.pixels),
                "pixels": base64.b64encode(self.pixels.tobytes()).decode(),
                "hidden": "".join("10"[int(kept)] for kept in self.keep.reshape(-1)),
            }
        )

    @classmethod
    def parse(cls, text: str | None, side: int) -> Self:
        """What a browser sent.

        Args:
            text: from `dump`, or from the painter.
            side: the model's S.

        Raises:
            UserError: there is no picture, or it is not one of this model's size.
        """
        if not text:
            raise UserError("there is no picture yet: upload one or pick an example")
        try:
            value = json.loads(text)
            raw = base64.b64decode(value["pixels"], validate=True)
            hidden = str(value["hidden"])
            if len(hidden) != side**2 or not set(hidden) <= {"0", "1"}:
                raise ValueError("mask")
            pixels = np.frombuffer(raw, np.uint8).reshape(side, side, 3)
        except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
            raise UserError("the picture is damaged: upload it again") from error
        keep = np.frombuffer(hidden.encode(), np.uint8) == ord("0")
        return cls(pixels, keep.reshape(side, side))
