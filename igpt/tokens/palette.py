"""The palette: 512 colours that stand for all others, one token a pixel (paper §3.2)."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igpt import files
from igpt.errors import UserError
from igpt.system import at_home
from igpt.tokens.fit import CHUNK_PX, Table, kept_table, rgb_index
from igpt.tokens.tokenizer import ImageArray, check_images, image_chunks, image_side

MAX_COLORS = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class PaletteError:
    """How far decoded images are from the originals, and how evenly the colours are used."""

    rms_rgb: tuple[float, float, float]
    """Root mean square error of red, green and blue, in levels of 255."""
    rms: float
    """The same over all three."""
    entropy_nats: float
    """Entropy of the colours' frequencies, nats a token: the loss of the best constant guess."""

    @property
    def psnr_db(self) -> float:
        """Peak signal-to-noise ratio in decibels; infinite where nothing is lost."""
        return float("inf") if self.rms == 0 else float(20 * np.log10(255 / self.rms))


class Palette:
    """K colours; encodes each pixel as the index of the nearest one.

    Attributes:
        colors: (K, 3) float32 in [-1, 1], read-only, as the authors store them.
        digest: hex sha256 of the colours' bytes.
    """

    kind: Literal["palette"] = "palette"

    def __init__(self, colors: ArrayLike) -> None:
        """Take the colours as they are.

        Args:
            colors: (K, 3) in [-1, 1], where -1 is level 0 and 1 is level 255.

        Raises:
            UserError: another shape, values outside [-1, 1], or more than 65536 colours.
        """
        self.colors = np.array(colors, np.float32, order="C")
        if self.colors.ndim != 2 or self.colors.shape[1] != 3:
            raise UserError(f"a palette has shape (K, 3), not {self.colors.shape}")
        if not 1 <= len(self.colors) <= MAX_COLORS:
            raise UserError(f"a palette has 1 to {MAX_COLORS} colours, not {len(self.colors)}")
        if not (np.abs(self.colors) <= 1).all():  # also false for NaN
            raise UserError("a palette's values lie in [-1, 1]: scale levels by level / 127.5 - 1")
        self.colors.setflags(write=False)
        self.digest = hashlib.sha256(self.colors.astype("<f4").tobytes()).hexdigest()
        self._table: Table | None = None

    def __repr__(self) -> str:
        return f"Palette({self.n_colors} colours, {self.digest[:8]})"

    @property
    def n_colors(self) -> int:
        """Colours K."""
        return len(self.colors)

    @classmethod
    def fit(cls, images: ImageArray, n_colors: int = 512, seed: int = 0) -> Self:
        """The k-means colours of all pixels; see `igpt.tokens.fit.fit_colors`.

        Args:
            images: (N, S, S, 3) uint8, an array or anything that is sliced like one.
            n_colors: colours K. Images with fewer distinct colours give those, exactly, with a
                warning.
            seed: of the k-means start.

        Raises:
            UserError: no images, or a number of colours outside 2 to 65536.
        """
        from igpt.tokens.fit import fit_colors  # scikit-learn takes seconds to import

        return cls(fit_colors(images, n_colors, seed=seed))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The palette in a `.npy` file of the authors' format: (K, 3) float32 in [-1, 1].

        Raises:
            UserError: no such file, or one that holds anything else.
        """
        path = at_home(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_COLORS * 12 + 4096)
        except OSError as error:
            raise UserError(
                f"cannot read palette {path}: {error.strerror}: check the path"
            ) from error
        try:
            colors = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
            raise UserError(
                f"{path} is not a palette: it must be a .npy file with a (K, 3) float32 array"
            ) from error
        if colors.dtype.newbyteorder("=") != np.float32:
            raise UserError(f"palette {path} holds {colors.dtype}, not float32: save it as float32")
        try:
            return cls(colors)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the colours as the authors store them (.npy), atomically."""
        buffer = io.BytesIO()
        np.save(buffer, self.colors)
        files.write_bytes(at_home(path), buffer.getvalue())

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The nearest colour of each pixel, in raster order; ties go to the lower index.

        Args:
            images: (..., S, S, 3) uint8.

        Returns:
            (..., S * S) int64, 0 to K - 1.

        Raises:
            UserError: images of another type or shape.
        """
        check_images(images)
        tokens = np.empty((*images.shape[:-3], images.shape[-2] ** 2), np.int64)
        self._encode_into(tokens, images)
        return tokens

    def encode_compact(self, images: NDArray[np.uint8]) -> Table:
        """The same as `encode` in uint8 (K <= 256) or uint16: a quarter of the memory or less."""
        check_images(images)
        tokens = np.empty((*images.shape[:-3], images.shape[-2] ** 2), self._looked_up().dtype)
        self._encode_into(tokens, images)
        return tokens

    def _encode_into(self, tokens: NDArray[np.integer], images: NDArray[np.uint8]) -> None:
        table = self._looked_up()
        levels, flat = np.ascontiguousarray(images).reshape(-1), tokens.reshape(-1)
        index = np.empty(min(CHUNK_PX, len(flat)), np.intp)
        small = np.empty(len(index), table.dtype)
        for start in range(0, len(flat), CHUNK_PX):
            part = flat[start : start + CHUNK_PX]
            rgb_index(levels[3 * start : 3 * (start + len(part))], index[: len(part)])
            # Clipping spares the check that every index is in range, which it is.
            table.take(index[: len(part)], out=small[: len(part)], mode="clip")
            part[:] = small[: len(part)]

    def decode(self, tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The images that tokens stand for: round(127.5 (c + 1)) of each one's colour.

        Args:
            tokens: (..., S * S) integers, 0 to K - 1.

        Returns:
            (..., S, S, 3) uint8.

        Raises:
            UserError: tokens outside the palette, or a number of them that fits no square image.
        """
        side = image_side(tokens, n_colors=self.n_colors, per_pixel=1)
        images: NDArray[np.uint8] = self.levels()[tokens]
        return images.reshape(*tokens.shape[:-1], side, side, 3)

    def levels(self) -> NDArray[np.uint8]:
        """The colours as pixels: (K, 3) uint8."""
        return np.rint(127.5 * (self.colors.astype(np.float64) + 1)).astype(np.uint8)

    def error(self, images: ImageArray) -> PaletteError:
        """What encoding and decoding loses on these images.

        Args:
            images: (N, S, S, 3) uint8, an array or anything that is sliced like one.

        Raises:
            UserError: no images, or images of another type or shape.
        """
        if len(images) == 0:
            raise UserError("there are no images to measure a palette on")
        levels = self.levels().astype(np.int64)
        squares, used = np.zeros(3, np.int64), np.zeros(self.n_colors, np.int64)
        for some in image_chunks(images):
            tokens = self.encode(some).reshape(-1)
            gap = levels[tokens] - some.reshape(-1, 3)
            squares += (gap**2).sum(axis=0)
            used += np.bincount(tokens, minlength=self.n_colors)
        share = used[used > 0] / used.sum()
        mean = squares / used.sum()
        red, green, blue = np.sqrt(mean).tolist()
        return PaletteError(
            rms_rgb=(red, green, blue),
            rms=float(np.sqrt(mean.mean())),
            entropy_nats=float(-(share * np.log(share)).sum()),
        )

    def _looked_up(self) -> Table:
        """The table of nearest colours: from memory, the cache folder, or made now."""
        if self._table is None:
            self._table = kept_table(self.colors, self.digest)
        return self._table
