"""Image files as commands take them: single files and whole folders, read only when needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from igpt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from igpt.pixelmodel import PixelModel

Images = Positional[
    Annotated[tuple[str, ...], arg(metavar="IMAGES", help_behavior_hint="(one or more)")]
]


def image_files(names: Sequence[str]) -> list[Path]:
    """The named files, and all images below the named folders, each folder sorted.

    Raises:
        UserError: a name is not there, or a folder holds no images.
    """
    from igpt.images.sources.folders import walk_images

    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_file():
            files.append(path)
            continue
        if not path.is_dir():
            raise UserError(f"{name} is neither a file nor a folder: check the path")
        inside = list(walk_images(path))
        if not inside:
            raise UserError(f"{name} holds no images: name image files or a folder of them")
        files += inside
    if not files:
        raise UserError("no images are given: name image files or a folder of them")
    return files


class FileImages:
    """Image files as an array that is read a slice at a time: (N, S, S, 3) uint8.

    Args:
        files: to read.
        image_size: side S; each image is cut to its central square and area-resized.
    """

    def __init__(self, files: Sequence[Path], image_size: int) -> None:
        self._files = files
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: slice, /) -> "np.ndarray":
        import numpy as np

        from igpt.images.crop import center_square
        from igpt.images.decode import read_image
        from igpt.images.resize import area_resize

        squares = (center_square(read_image(file)) for file in self._files[rows])
        return np.stack([area_resize(square, self._image_size) for square in squares])


def read_beside(
    model: "PixelModel", files: Sequence[Path], *, warn: bool = True
) -> "tuple[list[np.ndarray], np.ndarray]":
    """Each image as `pictures.framed` shows it, and all as the model takes them.

    Large images are made small one after another, so few of them are in memory at a time.

    Returns:
        (H, W, 3) uint8 each; (N, S, S, 3) uint8.
    """
    import numpy as np

    from igpt.generate.pictures import framed
    from igpt.images.decode import read_image
    from igpt.images.taking import square, warn_of_sizes

    shown, inputs, shorter_px, side = [], [], [], model.image_size
    for file in files:
        image = read_image(file)
        shown.append(framed(image, side))
        inputs.append(square(image, side))
        shorter_px.append(min(image.shape[:2]))
    if warn:
        warn_of_sizes(shorter_px, side)
    return shown, np.stack(inputs)
